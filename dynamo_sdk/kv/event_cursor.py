"""``EventCursor``: one seat's numbered batches, made whole whatever happens to them on the way.

Batches come in, actions come out; whoever drives it carries them out in order::

    state     a batch that           does                                      next
    any       is old                 nothing (a duplicate)                     the same
    LIVE      is the next one        Apply                                     LIVE
    LIVE      comes too early        is kept; AskSnapshot                      WAITING
    WAITING   is the next one        Apply, and what was kept and now follows  LIVE, if nothing is still kept
    WAITING   is later               is kept                                   WAITING
    any       is a newer snapshot    Replace, and what was kept and follows    LIVE, else AskSnapshot: WAITING
    WAITING   is an older snapshot   AskSnapshot                               WAITING

Between a gap and its snapshot the seat's last known state stays: most of it is still true.
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
        self.num_duplicates = self.num_gaps = self.num_snapshots = 0
        self._max_kept = max_kept
        self._kept: dict[int, KVDigestBatch] = {}

    def receive(self, batch: KVDigestBatch) -> list[CursorAction]:
        """What to do now that ``batch`` has come, in order."""
        if batch.is_snapshot:
            return self._receive_snapshot(batch)
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

    def _receive_snapshot(self, batch: KVDigestBatch) -> list[CursorAction]:
        is_first = not self.num_snapshots and self.last == BEFORE_ALL
        if batch.sequence <= self.last and not is_first:
            return [AskSnapshot()] if self.is_waiting else []
        self.num_snapshots += 1
        self.last = batch.sequence
        actions: list[CursorAction] = [Replace(batch.digests), *self._take_kept()]
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
        """There is a gap before what was kept."""
        self.is_waiting = True
        self.num_gaps += 1
        return [AskSnapshot()]

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests."""
        assert all(number > self.last + 1 for number in self._kept), "what could be applied was kept"
        assert len(self._kept) <= self._max_kept
        assert self.is_waiting or not self._kept, "something is missing and nobody asks for it"
