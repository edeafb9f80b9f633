"""``SimTier``: a cache tier of one rank in virtual time. Real books; a transfer is the time that it takes.

::

    offer ──> filters, queue ──> written, 16 blocks at a time ──> held ──> load: pinned while it is read

Which block has which slot and which one goes next is ``kv.StoreIndex`` with a policy of ``kv.eviction``; what
is worth a write and how many wait for one is ``kv.OffloadQueue``: the objects that live tiers have. Whoever
drives it calls ``advance`` at each of its moments, ``next_s``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from dynamo_sdk.interfaces import CacheKey, KVTierCounts
from dynamo_sdk.kv import (
    CachedBlock,
    NotPresent,
    OffloadFilter,
    OffloadQueue,
    SlotReservation,
    StoreIndex,
    eviction_policy,
)
from dynamo_sdk.types.kv_events import KVTier

from .channels import Channels

MAX_BATCH_BLOCKS = 16
"""So many blocks are written in one transfer, as NVIDIA Dynamo's block manager does."""


ENDLESS_BLOCKS = 1 << 40
"""The capacity of a tier that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierModel:
    """A tier of one rank: how much it holds, which block goes first, how fast it is. Reads and writes have
    ``num_channels`` each, of ``*_bytes_per_s`` each; a transfer takes ``latency_s`` beside its bytes. A block
    is written once ``min_uses`` requests asked for it, and if it is of at least ``min_priority``."""

    name: str
    kind: KVTier
    num_blocks: int
    eviction: str
    latency_s: float
    read_bytes_per_s: float
    write_bytes_per_s: float
    num_channels: int = 1
    min_uses: int = 0
    min_priority: int | None = None
    max_pending_blocks: int = 4096


@dataclass(frozen=True, slots=True)
class TierLoad:
    """Blocks on their way to the device, pinned until ``SimTier.loaded``."""

    pins: tuple[tuple[CacheKey, int], ...]
    begins_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class TierChange:
    """What one ``advance`` did: keys that are gone, then blocks that can be found from now on."""

    removed: tuple[CacheKey, ...] = ()
    stored: tuple[CachedBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """``end``: it is made; whether it is of what it should be."""

    end: Callable[[], bool]
    is_from_device: bool


BeginCopy = Callable[[CacheKey], Copy | None]
"""Copy this block from where it is now; None = from nowhere."""


@dataclass(frozen=True, slots=True)
class _Write:
    block: CachedBlock
    reservation: SlotReservation
    copy: Copy


class SimTier:
    """``begin_copy``: from the memories above. ``filters`` come after that for what is here already."""

    def __init__(
        self,
        model: TierModel,
        block_bytes: int,
        begin_copy: BeginCopy,
        filters: Sequence[OffloadFilter] = (),
    ) -> None:
        self.model = model
        self.counts = KVTierCounts()  # how long transfers took is without waiting
        self.num_read_blocks = self.num_offers = self.num_evicted = 0
        self.block_bytes = block_bytes
        self._begin_copy = begin_copy
        self._index = StoreIndex(model.num_blocks, eviction_policy(model.eviction, model.num_blocks))
        self._queue = OffloadQueue([NotPresent(self), *filters], model.max_pending_blocks)
        self._offers: list[tuple[float, int, Sequence[CachedBlock]]] = []  # a heap: those to come
        self._writing: list[tuple[float, int, list[_Write]]] = []  # a heap
        self._order = count()
        self._now_s = 0.0  # of the last ``advance``
        self._reads = self._channels(model.read_bytes_per_s)
        self._writes = self._channels(model.write_bytes_per_s)

    def _channels(self, bytes_per_s: float) -> Channels:
        model = self.model
        return Channels(model.num_channels, latency_s=model.latency_s, bytes_per_s=bytes_per_s)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and CacheKey(key) in self._index

    @property
    def num_blocks(self) -> int:
        return self._index.num_blocks

    @property
    def num_writing(self) -> int:
        return sum(len(writes) for _, _, writes in self._writing)

    @property
    def queue(self) -> OffloadQueue:
        """What waits to be written, to look at."""
        return self._queue

    # -- in

    def offer(self, blocks: Sequence[CachedBlock], at_s: float) -> None:
        """From ``at_s`` on these can be copied."""
        heappush(self._offers, (at_s, next(self._order), blocks))

    @property
    def next_s(self) -> float | None:
        """When there is something to ``advance``; None while nothing waits and nothing is written."""
        moments = [end_s for end_s, _, _ in self._writing[:1]]
        if self._offers:
            moments.append(self._offers[0][0])
        if self._queue:
            moments.append(self._writes.start_s(self._now_s))
        return min(moments, default=None)

    def advance(self, now_s: float) -> TierChange:
        """One thing of those that are due."""
        self._now_s = now_s
        if self._writing and self._writing[0][0] <= now_s:
            return TierChange(stored=tuple(self._end_write(heappop(self._writing)[2])))
        if self._offers and self._offers[0][0] <= now_s:
            blocks = heappop(self._offers)[2]
            self.num_offers += len(blocks)
            self._queue.offer(blocks)
            return TierChange()
        return TierChange(removed=tuple(self._begin_write(now_s)))

    def _begin_write(self, now_s: float) -> list[CacheKey]:
        writes: list[_Write] = []
        removed: list[CacheKey] = []
        for block in self._queue.take(MAX_BATCH_BLOCKS):
            copy = self._begin_copy(block.key)
            if copy is None:
                self._miss(block)
                continue
            reservation = self._index.reserve(block.key, parent=block.parent, priority=block.priority)
            if reservation is None:  # every slot is being read or written
                copy.end()
                self._miss(block)
                continue
            if reservation.evicted is not None:
                removed.append(reservation.evicted)
            writes.append(_Write(block, reservation, copy))
        self.num_evicted += len(removed)
        if writes:
            ends_s = self._writes.send(len(writes) * self.block_bytes, now_s)
            self.counts.offload_s += ends_s - now_s
            heappush(self._writing, (ends_s, next(self._order), writes))
        return removed

    def _miss(self, block: CachedBlock) -> None:
        self.counts.num_missed_blocks += 1
        self._queue.done((block,))

    def _end_write(self, writes: Sequence[_Write]) -> list[CachedBlock]:
        stored: list[CachedBlock] = []
        for write in writes:
            if not write.copy.end():
                self._index.abandon(write.reservation)
                self._miss(write.block)
                continue
            self._index.commit(write.reservation)
            self._queue.done((write.block,))
            stored.append(write.block)
            if write.copy.is_from_device:
                self.counts.num_offloaded_blocks_from_device += 1
            else:
                self.counts.num_offloaded_blocks_from_tiers += 1
        self.counts.offloaded_bytes += len(stored) * self.block_bytes
        return stored

    # -- out

    def wait_s(self, now_s: float) -> float:
        """How long a load would wait for those that are under way."""
        return self._reads.start_s(now_s) - now_s

    def load(self, keys: Sequence[CacheKey], now_s: float) -> TierLoad:
        """Read blocks that are held; ``KeyError`` for others."""
        begins_s = self._reads.start_s(now_s)
        # A prefix is of no use without its beginning: that is used last, and so stays longest.
        pins = tuple([(key, self._pin(key)) for key in reversed(keys)])
        self.num_read_blocks += len(keys)
        return TierLoad(pins, begins_s, self._reads.send(len(keys) * self.block_bytes, now_s))

    def loaded(self, load: TierLoad) -> None:
        """The bytes have arrived, wanted or not."""
        for key, slot in load.pins:
            self._index.unpin(key, slot)

    def begin_copy(self, key: CacheKey) -> Copy | None:
        """For a tier below. The block stays until the copy is made."""
        slot = self._index.pin(key)
        if slot is None:
            return None

        def end() -> bool:
            self._index.unpin(key, slot)
            return True

        return Copy(end, is_from_device=False)

    def _pin(self, key: CacheKey) -> int:
        slot = self._index.pin(key)
        if slot is None:
            raise KeyError(key)
        return slot

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(blocks)."""
        self._index.check_integrity()
        for _, _, writes in self._writing:
            assert all(self._index.is_writing(write.block.key) for write in writes)
