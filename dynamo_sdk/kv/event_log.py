"""``EventLog``: what a worker keeps so that readers of its KV events can join late and recover.

Per data-parallel rank the latest batches, for readers that missed a few, and an index of its own with all
that the rank holds, for a snapshot at any time without asking the engine. Readers see the engine's numbers as
long as those rise; an engine that begins anew is numbered on from there: no number ever means two things.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice

from dynamo_sdk.types.kv_events import KVDigest, KVDigestBatch, KVEvent, KVEventBatch, StoredDigest

from .digest import digest
from .event_cursor import BEFORE_ALL
from .prefix_index import PrefixIndex
from .snapshot_parts import cut_snapshot

_log = logging.getLogger(__name__)
_BYTES_PER_BLOCK = 8  # of names


class EventLog:
    """``max_blocks``: how many blocks the batches kept may speak of, per rank; about 16 bytes each."""

    def __init__(self, *, max_blocks: int = 65_536) -> None:
        self._max_blocks = max_blocks
        self._index = PrefixIndex()
        self._ranks: dict[int, _RankLog] = {}

    def begin(self, snapshot: Iterable[KVEventBatch]) -> None:
        """The state to start from: the engine's, one batch per rank. Again: forget all that was before."""
        before, self._ranks = self._ranks, {}
        for number in before:
            self._index.clear(number)
        for batch in snapshot:
            known = before.get(batch.dp_rank)
            if known is None:
                first = batch.sequence
            elif known.is_whole and batch.sequence + known.ahead == known.last:
                first = known.last  # nothing has happened there
            else:
                first = max(batch.sequence, known.last + 1)
            self._ranks[batch.dp_rank] = _RankLog(first, ahead=first - batch.sequence)
            for event in _digests(batch.events):
                self._index.apply(batch.dp_rank, event)

    def append(self, batch: KVEventBatch) -> bool:
        """Take the next batch of a rank. False = it is not taken, because one before it is missing or the
        engine counts backwards: ``begin`` anew."""
        rank = self._ranks.get(batch.dp_rank)
        if rank is None:
            rank = self._ranks[batch.dp_rank] = _RankLog(BEFORE_ALL)
        sequence = batch.sequence + rank.ahead
        if sequence != rank.last + 1:
            rank.is_whole = False
            return False
        digests = _digests(batch.events)
        for event in digests:
            self._index.apply(batch.dp_rank, event)
        rank.append(
            KVDigestBatch(sequence=sequence, dp_rank=batch.dp_rank, digests=digests), self._max_blocks
        )
        return True

    @property
    def ranks(self) -> set[int]:
        """Those that have been heard of."""
        return set(self._ranks)

    def after(self, seen: Mapping[int, int]) -> list[KVDigestBatch]:
        """What a reader lacks that has ``seen`` each rank's batches up to these numbers: the batches since,
        or a snapshot, in parts, where they are no longer kept, or where it has seen none."""
        lacking: list[KVDigestBatch] = []
        for number, rank in self._ranks.items():
            last_seen = seen.get(number)
            batches = None if last_seen is None else rank.after(last_seen)
            if batches is None:
                batches = cut_snapshot(rank.last, number, self._index.snapshot(number))
            lacking += batches
        return lacking

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(entries)."""
        self._index.check_integrity()
        for rank in self._ranks.values():
            rank.check_integrity()


class _RankLog:
    """Consecutive batches up to number ``last``; the engine's own numbers are ``ahead`` lower. ``is_whole``:
    the engine has said nothing that does not follow."""

    def __init__(self, last: int, *, ahead: int = 0) -> None:
        self.last = last
        self.ahead = ahead
        self.is_whole = True
        self._batches: deque[KVDigestBatch] = deque()
        self._num_blocks = 0

    def append(self, batch: KVDigestBatch, max_blocks: int) -> None:
        self.last = batch.sequence
        self._batches.append(batch)
        self._num_blocks += _num_blocks(batch)
        while self._num_blocks > max_blocks:
            self._num_blocks -= _num_blocks(self._batches.popleft())

    def after(self, number: int) -> list[KVDigestBatch] | None:
        """Those with higher numbers; None = not all of them are kept."""
        num_missing = self.last - number
        if not 0 <= num_missing <= len(self._batches):
            return None
        return list(islice(self._batches, len(self._batches) - num_missing, None))

    def check_integrity(self) -> None:
        numbers = [batch.sequence for batch in self._batches]
        assert numbers == list(range(self.last + 1 - len(numbers), self.last + 1))
        assert self._num_blocks == sum(map(_num_blocks, self._batches))


def _digests(events: Iterable[KVEvent]) -> tuple[KVDigest, ...]:
    found: list[KVDigest] = []
    for event in events:
        try:
            found.append(digest(event))
        except (
            ValueError
        ) as error:  # what follows the event's blocks cannot be placed either, and is left out
            _log.warning("an engine's KV event is left out: %s", error)
    return tuple(found)


def _num_blocks(batch: KVDigestBatch) -> int:
    """Each batch counts as one block at least, so that empty ones are bounded, too."""
    stored = sum(len(event.names) for event in batch.digests if isinstance(event, StoredDigest))
    return 1 + stored // _BYTES_PER_BLOCK
