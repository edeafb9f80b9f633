"""``EventCursor``: one seat's numbered batches, made whole whatever happens to them on the way.

Batches come in, actions come out; whoever drives it carries them out in order::

    state     a batch that           does                                      next
    any       is old                 nothing (a duplicate)                     the same
    LIVE      is the next one        Apply                                     LIVE
    LIVE      comes too early        is kept; AskSnapshot                      WAITING
    WAITING   is the next one        Apply, and what was kept and now follows  LIVE, if nothing is still kept
    WAITING   is later               is kept                                   WAITING
    any       is a newer snapshot    Replace, and what was kept and follows    LIVE, else AskSnapshot: WAITING
    any       is an older snapshot   Replace; what was kept is dropped         LIVE
    WAITING   is a snapshot of what  Replace; what was kept is dropped         LIVE
              is here already

A snapshot in several parts counts once its last part is here; one without its beginning is asked for again.
Between a gap and its snapshot the seat's last known state stays: most of it is still true. A sender whose
snapshot is older than what it has said before has begun anew, and its numbers count from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_sdk.types.kv_events import KVDigest, KVDigestBatch

BEFORE_ALL = -1
"""The sequence number of a state before the first batch, which has number 0."""


@dataclass(frozen=True, slots=True)
class Apply:
    """The seat's state changes by these."""

    digests: tuple[KVDigest, ...]


@dataclass(frozen=True, slots=True)
class Replace:
    """The seat's state is what these build from nothing. To be carried out in one piece."""

    digests: tuple[KVDigest, ...]


@dataclass(frozen=True, slots=True)
class AskSnapshot:
    """Something is missing: get the sender's snapshot. To be asked again when no answer comes."""


CursorAction = Apply | Replace | AskSnapshot


class EventCursor:
    """``last``: the sequence number up to which all was applied. Keeps at most ``max_kept`` batches."""

    def __init__(self, *, max_kept: int = 1024) -> None:
        self.last = BEFORE_ALL
        self.is_waiting = False
        self.num_duplicates = self.num_gaps = self.num_snapshots = self.num_restarts = 0
        self._max_kept = max_kept
        self._kept: dict[int, KVDigestBatch] = {}
        self._parts: list[KVDigestBatch] = []  # of a snapshot that is not complete

    @property
    def is_live(self) -> bool:
        """Nothing is missing, and no snapshot is on its way."""
        return not self.is_waiting and not self._parts

    def receive(self, batch: KVDigestBatch) -> list[CursorAction]:
        """What to do now that ``batch`` has come, in order."""
        if batch.is_snapshot:
            return self._receive_part(batch)
        if batch.sequence <= self.last:
            self.num_duplicates += 1
            return []
        if batch.sequence == self.last + 1:
            self.last = batch.sequence
            actions: list[CursorAction] = [Apply(batch.digests), *self._take_kept()]
            self.is_waiting = bool(self._kept)
            return actions
        if len(self._kept) >= self._max_kept:
            self._kept.clear()  # more than can be waited for: the snapshot is newer, or leads to the next one
        self._kept[batch.sequence] = batch
        if self.is_waiting:
            return []
        return self._ask()

    def _receive_part(self, batch: KVDigestBatch) -> list[CursorAction]:
        if batch.part == 0:
            self._parts.clear()
        elif batch.part != len(self._parts) or batch.sequence != self._parts[0].sequence:
            self._parts.clear()
            return self._ask()
        self._parts.append(batch)
        if len(self._parts) < batch.num_parts:
            return []
        parts, self._parts = self._parts, []
        digests = tuple(digest for part in parts for digest in part.digests)
        return self._receive_snapshot(batch.sequence, digests)

    def _receive_snapshot(self, sequence: int, digests: tuple[KVDigest, ...]) -> list[CursorAction]:
        is_first = not self.num_snapshots and self.last == BEFORE_ALL
        if sequence == self.last and not self.is_waiting and not is_first:
            return []
        if sequence < self.last or (sequence == self.last and self._kept):
            self.num_restarts += 1
            self._kept.clear()  # said before the restart
        self.num_snapshots += 1
        self.last = sequence
        actions: list[CursorAction] = [Replace(digests), *self._take_kept()]
        self.is_waiting = False
        return actions + self._ask() if self._kept else actions

    def _take_kept(self) -> list[CursorAction]:
        """Apply what was kept and now follows without a gap."""
        actions: list[CursorAction] = []
        while (batch := self._kept.pop(self.last + 1, None)) is not None:
            self.last = batch.sequence
            actions.append(Apply(batch.digests))
        self._kept = {number: kept for number, kept in self._kept.items() if number > self.last}
        return actions

    def _ask(self) -> list[CursorAction]:
        """There is a gap before what was kept, or in a snapshot."""
        self.is_waiting = True
        self.num_gaps += 1
        return [AskSnapshot()]

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests."""
        assert all(number > self.last + 1 for number in self._kept), "what could be applied was kept"
        assert len(self._kept) <= self._max_kept
        assert self.is_waiting or not self._kept, "something is missing and nobody asks for it"
