"""``PrefixIndex``: which seats hold how much of a prompt's beginning.

A seat is whatever has one prefix cache, such as one data-parallel rank of a worker; seats are numbers that
the owner of the index gives out. Events say what a seat stored and removed in which tier. A prompt is asked
for by its keys (``prefix_keys``)::

    index = PrefixIndex()
    index.apply(seat, event)                    # a KVEvent of an engine, or its digest
    index.match(prefix_keys(tokens, 16))        # {seat: Overlap(device_blocks=12), ...}

The index is a radix tree whose edges are runs of blocks (``prefix_tree``). A prompt walks down its runs, one
dictionary look-up each, and compares one key per run: keys agree at a block only if they agree at all before.

**What counts as held.** Engines may remove a block and keep those after it. Such blocks cannot be used, so
``match`` does not count them, and counts them again once the removed one is back. That costs nothing on
ingest: holders are intersected along the walk, and within a run the leading ones of a bitmap count.

**Names.** Engines name blocks in ways of their own. A parent or a removed block is nearly always the last
that its seat holds of a run, which ``Holder.ends`` knows; any other is searched for among the names of that
seat. A name must mean one block of one sequence as long as a seat holds it; a block goes by its latest name.

No order of events raises: what does not fit (an unknown parent, an unknown name) is counted and ignored.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.interfaces.router import Overlap
from dynamo_sdk.types.kv_events import (
    BlocksCleared,
    KVDigest,
    KVEvent,
    KVTier,
    MovedDigest,
    RemovedDigest,
    StoredDigest,
)

from .digest import digest
from .prefix_holder import Holder
from .prefix_keys import PrefixKeys, extend_keys, unpack_words
from .prefix_run import Run
from .prefix_snapshot import take_snapshot
from .prefix_tree import PrefixTree, bits_of

_TIERS = tuple(KVTier)  # fastest first
DEFAULT_MAX_ENTRIES = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixIndexStatistics:
    """``num_entries``: pairs of a block and a tier of a seat that holds it. ``num_unplaced``: stores after a
    parent that the seat does not hold; ``num_unknown``: removed blocks that it does not hold;
    ``num_refused``: stores beyond ``max_entries``."""

    num_blocks: int
    num_entries: int
    num_runs: int
    num_unplaced: int
    num_unknown: int
    num_refused: int


class PrefixIndex:
    """See the module. ``max_entries`` bounds the memory: at most about 16 bytes per entry in long runs."""

    def __init__(self, *, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        self.max_entries = max_entries
        self._tree = PrefixTree()
        self._of_seat: dict[int, dict[KVTier, Holder]] = {}
        self._tiered: set[int] = set()  # seats that hold blocks elsewhere than on the device
        self._device = 0  # the holders that are the device of other seats
        self._seats_of: dict[int, tuple[int, ...]] = {}  # decoded sets of holders
        self._num_unplaced = self._num_unknown = self._num_refused = 0

    # -- what seats say

    def apply(self, seat: int, event: KVEvent | KVDigest) -> bool:
        """Take note of one event; False = it did not fit and changed nothing, or not all that it said."""
        if isinstance(event, StoredDigest):
            return self.store(seat, event.parent, event.names, event.hashes, event.tier)
        if isinstance(event, RemovedDigest):
            return self.remove(seat, event.names, event.tier)
        if isinstance(event, MovedDigest):
            return self.move(seat, event.names, event.tier, event.to_tier)
        if isinstance(event, BlocksCleared):
            self.clear(seat)
            return True
        return self.apply(seat, digest(event))

    def store(
        self, seat: int, parent: int | None, names: bytes, hashes: bytes, tier: KVTier = KVTier.DEVICE
    ) -> bool:
        """``seat`` holds consecutive blocks after the block named ``parent`` (None: at the start). Arguments
        as in ``StoredDigest``. False = the seat holds no block ``parent``, or the index is full."""
        if len(names) != len(hashes):
            raise ValueError(f"{len(names)} bytes of names for {len(hashes)} bytes of hashes")
        holder = self._holder(seat, tier)
        if parent is None:
            return self._put(holder, None, 0, extend_keys(0, 0, hashes), unpack_words(names))
        place = holder.find(parent) or self._find_elsewhere(holder, parent)
        if place is None:
            self._num_unplaced += 1
            return False
        run, offset = place
        keys = extend_keys(run.keys[offset], run.start + offset + 1, hashes)
        return self._put(holder, run, offset + 1, keys, unpack_words(names))

    def store_prefix(self, seat: int, keys: PrefixKeys) -> bool:
        """``seat`` holds all these blocks on its device; their keys are their names."""
        return self._put(self._holder(seat, KVTier.DEVICE), None, 0, keys, array("Q", keys.tobytes()))

    def remove(self, seat: int, names: bytes, tier: KVTier = KVTier.DEVICE) -> bool:
        """``seat`` no longer holds these blocks in ``tier``. False = it did not hold all of them."""
        holder = self._of_seat.get(seat, {}).get(tier)
        words = unpack_words(names)
        if holder is None:
            self._num_unknown += len(words)
            return False
        if words and words[0] not in holder.ends and words[-1] in holder.ends:
            words.reverse()  # they are all gone in the end, and this way each is the last of its run
        at, num_unknown = 0, 0
        while at < len(words):
            place = holder.find(words[at])
            if place is None:
                num_unknown += 1
                at += 1
                continue
            run, offset = place
            count = _num_backwards(words, at, run.names_of(holder), offset)
            self._tree.release(holder, run, ((1 << count) - 1) << (offset + 1 - count))
            at += count
        self._num_unknown += num_unknown
        return not num_unknown

    def move(self, seat: int, names: bytes, tier: KVTier, to_tier: KVTier) -> bool:
        """``seat`` has moved blocks from ``tier`` to ``to_tier``. False = it did not hold all of them."""
        source = self._of_seat.get(seat, {}).get(tier)
        num_unknown = 0
        for name in unpack_words(names):
            place = None if source is None else source.find(name)
            if place is None or source is None:
                num_unknown += 1
            elif tier is not to_tier:
                run, offset = place
                key = memoryview(run.keys[offset : offset + 1])
                self._tree.put(self._holder(seat, to_tier), run, offset, key, array("Q", [name]))
                self._tree.release(source, run, 1 << offset)
        self._num_unknown += num_unknown
        return not num_unknown

    def clear(self, seat: int) -> None:
        """``seat`` holds nothing, in no tier."""
        for holder in self._of_seat.get(seat, {}).values():
            self._tree.release_all(holder)

    def drop(self, seat: int) -> None:
        """``seat`` is gone; its number may be given out again."""
        self.clear(seat)
        for holder in self._of_seat.pop(seat, {}).values():
            self._tree.holders[holder.number] = None
            self._device &= ~holder.bit
        self._tiered.discard(seat)
        self._seats_of.clear()

    # -- what routers ask

    def match(self, keys: Sequence[int]) -> dict[int, Overlap]:
        """The seats that hold leading blocks of the prompt with these keys, and how many in which tier."""
        path = self._tree.path(keys)
        found: dict[int, Overlap] = {}
        if not path:
            return found
        depth, alive = 0, self._device
        for run, count in path:
            for number, held in run.partial.items():
                if alive >> number & 1:
                    num_leading = (~held & (held + 1)).bit_length() - 1
                    if depth or num_leading:
                        found[self._seat_of(number)] = Overlap(device_blocks=depth + min(num_leading, count))
                    alive ^= 1 << number
            if depth and (leaving := alive & ~run.full):
                found |= dict.fromkeys(self._seats(leaving), Overlap(device_blocks=depth))
            alive &= run.full
            if not alive:
                break
            depth += count
        if alive:
            found |= dict.fromkeys(self._seats(alive), Overlap(device_blocks=depth))
        for seat in self._tiered:
            overlap = self._tiered_overlap(seat, path)
            if overlap is not None:
                found[seat] = overlap
        return found

    def _tiered_overlap(self, seat: int, path: list[tuple[Run, int]]) -> Overlap | None:
        tiers = self._of_seat[seat]
        counts = [0, 0, 0, 0]
        depth = num_readable = 0
        for run, count in path:
            bitmaps = [run.held(tiers[tier]) if tier in tiers else 0 for tier in _TIERS]
            anywhere = bitmaps[0] | bitmaps[1] | bitmaps[2] | bitmaps[3]
            num_leading = min((~anywhere & (anywhere + 1)).bit_length() - 1, count)
            if num_readable == depth:
                readable = bitmaps[1] | bitmaps[2]
                num_readable += min((~readable & (readable + 1)).bit_length() - 1, count)
            depth += count
            rest = (1 << num_leading) - 1
            for index, bitmap in enumerate(bitmaps):
                counts[index] += (rest & bitmap).bit_count()
                rest &= ~bitmap
            if num_leading < len(run.keys):
                break
        if not any(counts):
            return None
        return Overlap(
            device_blocks=counts[0],
            host_blocks=counts[1],
            disk_blocks=counts[2],
            remote_blocks=counts[3],
            readable_blocks=num_readable,
        )

    def snapshot(self, seat: int) -> tuple[KVDigest, ...]:
        """Digests that give an empty seat all that this one holds, hidden blocks included."""
        return take_snapshot(list(self._of_seat.get(seat, {}).values()))

    # -- facts

    @property
    def num_blocks(self) -> int:
        """Different blocks, whoever holds them."""
        return self._tree.num_blocks

    def num_held(self, seat: int) -> int:
        """Entries of ``seat``: its blocks, counted once per tier."""
        return sum(holder.num_blocks for holder in self._of_seat.get(seat, {}).values())

    def statistics(self) -> PrefixIndexStatistics:
        return PrefixIndexStatistics(
            num_blocks=self._tree.num_blocks,
            num_entries=self._tree.num_entries,
            num_runs=len(self._tree.heads),
            num_unplaced=self._num_unplaced,
            num_unknown=self._num_unknown,
            num_refused=self._num_refused,
        )

    # -- holders

    def _holder(self, seat: int, tier: KVTier) -> Holder:
        holders = self._of_seat.get(seat)
        if holders is not None and (holder := holders.get(tier)) is not None:
            return holder
        return self._add_holder(seat, tier)

    def _add_holder(self, seat: int, tier: KVTier) -> Holder:
        holders = self._tree.holders
        number = next((n for n, taken in enumerate(holders) if taken is None), len(holders))
        if number == len(holders):
            holders.append(None)
        holder = holders[number] = Holder(number, seat, tier)
        tiers = self._of_seat.setdefault(seat, {})
        tiers[tier] = holder
        if len(tiers) > 1 or tier is not KVTier.DEVICE:
            self._tiered.add(seat)
            for other in tiers.values():
                self._device &= ~other.bit
        else:
            self._device |= holder.bit
        self._seats_of.clear()
        return holder

    def _put(self, holder: Holder, run: Run | None, end: int, keys: PrefixKeys, names: array[int]) -> bool:
        if self._tree.num_entries + len(keys) > self.max_entries:
            self._num_refused += 1
            return False
        self._tree.put(holder, run, end, keys, names)
        return True

    def _find_elsewhere(self, holder: Holder, name: int) -> tuple[Run, int] | None:
        """In the other tiers of the same seat."""
        for other in self._of_seat[holder.seat].values():
            if other is not holder and (place := other.find(name)) is not None:
                return place
        return None

    def _seat_of(self, number: int) -> int:
        holder = self._tree.holders[number]
        assert holder is not None
        return holder.seat

    def _seats(self, numbers: int) -> tuple[int, ...]:
        """The seats of a set of holders; the same sets come again and again."""
        seats = self._seats_of.get(numbers)
        if seats is None:
            if len(self._seats_of) >= 1024:
                self._seats_of.clear()
            seats = self._seats_of[numbers] = tuple([self._seat_of(number) for number in bits_of(numbers)])
        return seats

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(entries)."""
        self._tree.check_integrity()
        for seat, tiers in self._of_seat.items():
            for tier, holder in tiers.items():
                assert (holder.seat, holder.tier) == (seat, tier)
                assert self._tree.holders[holder.number] is holder
                assert bool(self._device & holder.bit) == (seat not in self._tiered)
        assert sum(len(tiers) for tiers in self._of_seat.values()) == sum(map(bool, self._tree.holders))


def _num_backwards(words: array[int], at: int, names: array[int], offset: int) -> int:
    """How many of ``words`` from ``at`` on are the names at ``offset`` and backwards from it; 1 or more."""
    most = min(len(words) - at, offset + 1)
    first = names[offset + 1 - most : offset + 1]
    first.reverse()
    if words[at : at + most] == first:
        return most
    count = 1
    while count < most and words[at + count] == first[count]:
        count += 1
    return count
