"""``StoreIndex``: which slot of a tier holds which block, and who is at it.

A slot is in exactly one of four states::

             reserve                commit
    FREE ───────────────> WRITING ──────────> HELD <──> HELD, with readers (pin, unpin)
     ▲                      │ abandon           │              │ forget
     ├──────────────────────┘                   │              ▼
     ├──────────────────────────────────────────┘           DOOMED
     └────────────────────── last unpin ───────────────────────┘

Only HELD slots are found. ``reserve`` evicts when nothing is FREE; what is being read or written is
spared. A key is forgotten at once, its slot when the last reader has left. A medium that turns out to be
smaller than promised has FREE slots withheld; then ``reserve`` evicts instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from dynamo_sdk.interfaces.kv_store import CacheKey

from .eviction import EvictionPolicy


class SlotReservation(msgspec.Struct, frozen=True, gc=False, eq=False):
    """``slot`` is to be filled, then ``commit`` or ``abandon``. ``evicted``: the key that lost it."""

    slot: int
    key: CacheKey
    parent: CacheKey | None
    priority: int
    evicted: CacheKey | None


class _Held(msgspec.Struct, gc=False, eq=False):
    slot: int
    num_readers: int = 0


class StoreIndex:
    """Slots ``0 .. num_slots - 1``. Free ones are given out lowest first, so that batches lie together."""

    def __init__(self, num_slots: int, policy: EvictionPolicy) -> None:
        if num_slots < 1:
            raise ValueError(f"a store needs at least one slot, not {num_slots}")
        self.num_slots = num_slots
        self._policy = policy
        self._free: list[
            int
        ] = []  # a heap of slots that were in use; those from ``_num_touched`` on never were
        self._num_touched = 0
        self._end = num_slots  # untouched slots from here on are withheld
        self._held: dict[CacheKey, _Held] = {}
        self._writing: dict[CacheKey, SlotReservation] = {}
        self._pinned: set[CacheKey] = set()  # held, with readers
        self._doomed: dict[int, int] = {}  # slot -> readers that are still at it
        self._withheld: list[int] = []

    @property
    def num_blocks(self) -> int:
        """Blocks that can be found."""
        return len(self._held)

    @property
    def num_used_slots(self) -> int:
        return self._num_touched - len(self._free) - len(self._withheld)

    def __contains__(self, key: CacheKey) -> bool:
        return key in self._held

    def keys(self) -> Iterator[CacheKey]:
        return iter(self._held)

    def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        """How many leading ``keys`` are held. A tier may have holes, so each is looked up."""
        held = self._held
        return next((count for count, key in enumerate(keys) if key not in held), len(keys))

    def is_writing(self, key: CacheKey) -> bool:
        return key in self._writing

    def use(self, key: CacheKey) -> None:
        """Count as used what is held."""
        self._policy.used(key)

    def reserve(
        self, key: CacheKey, *, parent: CacheKey | None = None, priority: int = 0
    ) -> SlotReservation | None:
        """A slot for a key that is neither held nor being written (else ``ValueError``). None = every slot
        is being read or written."""
        if key in self._held or key in self._writing:
            raise ValueError("the key is held already")
        evicted: CacheKey | None = None
        if self._free:
            slot = heappop(self._free)
        elif self._num_touched < self._end:
            slot = self._num_touched
            self._num_touched += 1
        else:
            evicted = self._policy.victim(self._pinned)
            if evicted is None:
                return None
            slot = self._held.pop(evicted).slot  # nobody reads it: the victim is none of the pinned
            self._policy.removed(evicted)
        reservation = SlotReservation(slot, key, parent, priority, evicted)
        self._writing[key] = reservation
        return reservation

    def commit(self, reservation: SlotReservation) -> None:
        """The slot is filled: its key is found from now on."""
        del self._writing[reservation.key]
        self._held[reservation.key] = _Held(reservation.slot)
        self._policy.added(reservation.key, parent=reservation.parent, priority=reservation.priority)

    def abandon(self, reservation: SlotReservation) -> None:
        """The slot could not be filled."""
        del self._writing[reservation.key]
        heappush(self._free, reservation.slot)

    def pin(self, key: CacheKey) -> int | None:
        """The key's slot, which keeps its content until ``unpin``; None when not held. Counts as a use."""
        held = self._held.get(key)
        if held is None:
            return None
        held.num_readers += 1
        self._pinned.add(key)
        self._policy.used(key)
        return held.slot

    def unpin(self, key: CacheKey, slot: int) -> None:
        """One reader has left ``slot``, which it pinned under ``key``."""
        if slot in self._doomed:
            self._doomed[slot] -= 1
            if not self._doomed[slot]:
                del self._doomed[slot]
                heappush(self._free, slot)
            return
        held = self._held[key]
        held.num_readers -= 1
        if not held.num_readers:
            self._pinned.remove(key)

    def forget(self, key: CacheKey) -> bool:
        """Whether the key was held. A block that is being written stays: it is not there yet."""
        held = self._held.pop(key, None)
        if held is None:
            return False
        self._policy.removed(key)
        if held.num_readers:
            self._pinned.remove(key)
            self._doomed[held.slot] = held.num_readers
        else:
            heappush(self._free, held.slot)
        return True

    def withhold(self, first_slot: int) -> None:
        """Give out no free slot from ``first_slot`` on until ``give_back``."""
        self._withheld.extend(slot for slot in self._free if slot >= first_slot)
        self._free = [slot for slot in self._free if slot < first_slot]
        heapify(self._free)
        self._end = max(self._num_touched, min(self._end, first_slot))

    def give_back(self) -> None:
        """End all ``withhold``."""
        self._end = self.num_slots
        self._free.extend(self._withheld)
        self._withheld.clear()
        heapify(self._free)

    def restore(self, found: Sequence[SlotReservation]) -> None:
        """Take over what slots were found to hold at start, least recently used first. ``ValueError`` when a
        slot or a key is taken."""
        num_touched = max([self._num_touched, *[block.slot + 1 for block in found]])
        if num_touched > self._end:
            raise ValueError(f"slot {num_touched - 1} of {self._end}")
        free = {*self._free, *range(self._num_touched, num_touched)}
        self._num_touched = num_touched
        for block in found:
            if block.slot not in free or block.key in self._held or block.key in self._writing:
                raise ValueError(f"slot {block.slot} or its key is taken")
            free.remove(block.slot)
            self._held[block.key] = _Held(block.slot)
            self._policy.added(block.key, parent=block.parent, priority=block.priority)
        self._free = list(free)
        heapify(self._free)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. O(slots)."""
        held = {entry.slot for entry in self._held.values()}
        writing = {reservation.slot for reservation in self._writing.values()}
        free, doomed = set(self._free), set(self._doomed)
        assert len(free) == len(self._free), "a slot is free twice"
        assert all(slot < self._num_touched <= self._end <= self.num_slots for slot in (-1, *free))
        assert len(held) == len(self._held), "two keys share a slot"
        assert len(writing) == len(self._writing), "two writers share a slot"
        withheld = set(self._withheld)
        sizes = len(free) + len(held) + len(writing) + len(doomed) + len(self._withheld)
        assert free | held | writing | doomed | withheld == set(range(self._num_touched)), "a slot is lost"
        assert sizes == self._num_touched, "a slot is in two states"
        assert not self._held.keys() & self._writing.keys()
        assert all(count > 0 for count in self._doomed.values())
        assert self._pinned == {key for key, entry in self._held.items() if entry.num_readers > 0}
        victim = self._policy.victim(self._pinned)
        assert victim is None or victim in self._held, "the policy names a key that is not held"
