"""``SlotStore``: a ``KVStore`` of equal slots in some medium. RAM and disk differ in the medium only.

Bookkeeping happens on the event loop (``kv/store_index.py``), bytes move on threads. Reads have threads of
their own, so that a request that waits is never behind a queue of writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from anyio.lowlevel import checkpoint

from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStoreFailureKind,
    KVStoreStatistics,
    RestoredBlock,
)
from dynamo_sdk.kv import EvictionPolicy, SlotReservation, StoreIndex
from dynamo_sdk.transfer.threads import run_to_end

from .batch import Batch, PartWork, Stop, StoreShape, in_parts, parts_of
from .failures import NO_ROOM_S, RestAfterFailures
from .medium import SlotJob, SlotMedium
from .watched_store import WatchedStore, as_bytes


class SlotStore(WatchedStore):
    def __init__(
        self,
        shape: StoreShape,
        medium: SlotMedium,
        policy: EvictionPolicy,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(shape.name, shape.block_bytes, monotonic_s)
        self._shape = shape
        self._medium = medium
        self._index = StoreIndex(medium.num_slots, policy)
        self._read_rest = RestAfterFailures()
        self._write_rest = RestAfterFailures()
        self._give_back_at_s = float("inf")  # slots that the medium had no room for
        self._pending_write_bytes = 0
        self._is_open = False
        self._readers: ThreadPoolExecutor | None = None
        self._writers: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        name, shape = f"kv-{self._shape.name}", self._shape
        self._readers = ThreadPoolExecutor(shape.num_read_threads, thread_name_prefix=f"{name}-read")
        self._writers = ThreadPoolExecutor(shape.num_write_threads, thread_name_prefix=f"{name}-write")
        found = await run_to_end(self._writers, self._medium.open, lambda: None)
        self._index.restore(
            [SlotReservation(block.slot, block.key, block.parent, block.priority, None) for block in found]
        )
        self._is_open = True
        if found:
            self._listener.restored(
                [RestoredBlock(block.key, block.parent, block.token_hash, block.namespace) for block in found]
            )

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        await checkpoint()
        self._note_offers(offers)
        now_s = self._monotonic_s()
        batch = Batch([False] * len(offers))
        if not self._is_open or self._write_rest.is_resting(now_s):
            return batch.answers
        if now_s >= self._give_back_at_s:
            self._index.give_back()
            self._give_back_at_s = float("inf")
        await self._in_parts(
            len(offers),
            self._shape.num_write_threads,
            lambda start, end: self._put_part(batch, start, offers[start:end]),
        )
        self._counts.num_kept += sum(batch.answers)
        self._note_moved(batch.num_moved, now_s, is_load=False, is_whole=batch.is_whole)
        return batch.answers

    async def _put_part(self, batch: Batch, start: int, offers: Sequence[BlockOffer]) -> None:
        positions: list[int] = []
        places: list[SlotReservation] = []
        jobs: list[SlotJob] = []
        evicted: list[CacheKey] = []
        num_refused = 0
        block_bytes, index = self._block_bytes, self._index
        num_admitted = (self._shape.max_pending_write_bytes - self._pending_write_bytes) // block_bytes
        for position, offer in enumerate(offers, start):
            key = offer.key
            if key in index:
                index.use(key)
                batch.answers[position] = True
                continue
            memory = as_bytes(offer.data)
            if len(memory) != block_bytes or index.is_writing(key):
                continue
            if len(jobs) >= num_admitted:
                num_refused += 1
                continue
            place = index.reserve(key, parent=offer.parent, priority=offer.priority)
            if place is None:
                continue
            if place.evicted is not None:
                evicted.append(place.evicted)
            positions.append(position)
            places.append(place)
            jobs.append(SlotJob(place.slot, key, memory, offer))
        if evicted:
            self._counts.num_evicted += len(evicted)
            self._listener.removed(evicted)
        if num_refused:
            self._fail(KVStoreFailureKind.BUSY, "too many writes are under way", num_refused)
        if jobs:
            self._pending_write_bytes += len(jobs) * block_bytes
            try:
                await self._move(batch, positions, jobs, is_load=False)
            finally:
                self._pending_write_bytes -= len(jobs) * block_bytes
                self._end_writes(places, jobs)

    def _end_writes(self, places: Sequence[SlotReservation], jobs: Sequence[SlotJob]) -> None:
        stored: list[CacheKey] = []
        for place, job in zip(places, jobs, strict=True):
            if job.is_done:
                self._index.commit(place)
                stored.append(place.key)
            else:
                self._index.abandon(place)
        if len(stored) < len(jobs):
            no_room = [job.slot for job in jobs if job.failure is KVStoreFailureKind.FULL]
            if no_room:
                self._index.withhold(min(no_room))
                self._give_back_at_s = self._monotonic_s() + NO_ROOM_S
        self._note_failures(jobs, self._write_rest, num_done=len(stored))
        if stored:
            self._listener.stored(stored)

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        await checkpoint()
        buffers = self._note_lookups(keys, into)
        batch, begin_s = Batch([False] * len(keys)), self._monotonic_s()
        if not self._is_readable():
            return batch.answers
        await self._in_parts(
            len(keys),
            self._shape.num_read_threads,
            lambda start, end: self._get_part(batch, start, keys[start:end], buffers[start:end]),
        )
        self._counts.num_hits += sum(batch.answers)
        self._note_moved(batch.num_moved, begin_s, is_load=True, is_whole=batch.is_whole)
        return batch.answers

    async def _get_part(
        self, batch: Batch, start: int, keys: Sequence[CacheKey], buffers: Sequence[memoryview]
    ) -> None:
        positions: list[int] = []
        jobs: list[SlotJob] = []
        for position, (key, buffer) in enumerate(zip(keys, buffers, strict=True), start):
            slot = self._index.pin(key)
            if slot is not None:
                positions.append(position)
                jobs.append(SlotJob(slot, key, buffer))
        if not jobs:
            return
        num_done = 0
        try:
            num_done = await self._move(batch, positions, jobs, is_load=True)
        finally:
            self._end_reads(jobs, num_done)

    def _end_reads(self, jobs: Sequence[SlotJob], num_done: int) -> None:
        lost: list[CacheKey] = []
        for job in jobs:
            if job.failure is not None and self._index.forget(job.key):
                lost.append(job.key)
            self._index.unpin(job.key, job.slot)
        self._note_failures(jobs, self._read_rest, num_done=num_done)
        if lost:
            self._listener.removed(lost)

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        await checkpoint()
        is_readable = self._is_readable()
        return [is_readable and key in self._index for key in keys]

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        await checkpoint()
        return self._index.count_prefix(keys) if self._is_readable() else 0

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await checkpoint()
        threads = self._writers
        if not self._is_open or threads is None:
            return
        pinned: list[tuple[CacheKey, int]] = []
        for key in keys:
            slot = self._index.pin(key)  # nobody else gets the slot before its entry is cleared
            if slot is not None:
                self._index.forget(key)
                pinned.append((key, slot))
        if not pinned:
            return
        self._listener.removed([key for key, _ in pinned])
        slots = [slot for _, slot in pinned]
        try:
            with self._pending():
                await run_to_end(threads, lambda: self._medium.clear(slots), lambda: None)
        finally:
            for key, slot in pinned:
                self._index.unpin(key, slot)

    def statistics(self) -> KVStoreStatistics:
        index, block_bytes = self._index, self._block_bytes
        return self._statistics(
            num_blocks=index.num_blocks,
            used_bytes=index.num_used_slots * block_bytes,
            capacity_bytes=index.num_slots * block_bytes,
        )

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up."""
        self._index.check_integrity()
        assert self._pending_write_bytes >= 0
        assert self._num_pending >= 0

    async def close(self) -> None:
        self._is_open = False
        await self._wait_idle()
        for threads in (self._readers, self._writers):
            if threads is not None:
                threads.shutdown()
        self._readers = self._writers = None
        self._medium.close()

    async def _in_parts(self, num_blocks: int, num_threads: int, work: PartWork) -> None:
        parts = parts_of(num_blocks, self._block_bytes, num_threads, is_ordered=self._medium.is_ordered)
        with self._pending():
            await in_parts(parts, num_threads, work)

    async def _move(
        self, batch: Batch, positions: Sequence[int], jobs: list[SlotJob], *, is_load: bool
    ) -> int:
        """Let the medium do the jobs, and answer for them. How many it did. All of them are over when this
        returns or is cancelled."""
        work = self._medium.read if is_load else self._medium.write
        in_turn = sorted(jobs, key=_slot_of) if self._medium.is_ordered else jobs
        stop = Stop()
        if len(jobs) * self._block_bytes <= self._medium.inline_bytes:
            work(in_turn, stop)
        else:
            threads = self._readers if is_load else self._writers
            assert threads is not None
            await run_to_end(threads, partial(work, in_turn, stop), stop.set)
        num_done = 0
        for position, job in zip(positions, jobs, strict=True):
            if job.is_done:
                batch.answers[position] = True
                num_done += 1
        batch.num_moved += num_done
        batch.is_whole = batch.is_whole and num_done == len(jobs)
        return num_done

    def _is_readable(self) -> bool:
        return self._is_open and not self._read_rest.is_resting(self._monotonic_s())

    def _note_failures(self, jobs: Sequence[SlotJob], rest: RestAfterFailures, *, num_done: int) -> None:
        failed = [job for job in jobs if job.failure is not None] if num_done < len(jobs) else []
        if not failed:
            if num_done:
                rest.worked()
            return
        for kind in sorted({job.failure for job in failed if job.failure is not None}):
            of_kind = [job for job in failed if job.failure is kind]
            self._fail(kind, of_kind[0].detail, len(of_kind))
        is_broken = any(job.failure is KVStoreFailureKind.IO for job in failed)
        if is_broken:
            self._note_error(rest)


def _slot_of(job: SlotJob) -> int:
    return job.slot
