"""``check_kv_store``: does anybody's store keep the promises of ``KVStore``?"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.interfaces import CacheKey, KVStore

from .report import Report, require, run_checks, subject_of


@dataclass(frozen=True, slots=True)
class StoreBench:
    """``factory`` makes an empty store."""

    factory: Callable[[], KVStore]
    block_bytes: int

    @asynccontextmanager
    async def store(self) -> AsyncIterator[KVStore]:
        store = self.factory()
        try:
            await store.start()
            yield store
        finally:
            await store.close()

    def key(self, number: int) -> CacheKey:
        return CacheKey(hashlib.blake2b(b"key %d" % number, digest_size=16).digest())

    def block(self, number: int) -> bytes:
        """Different bytes for each number, none of them mostly zero."""
        pattern = hashlib.blake2b(b"block %d" % number).digest()
        return (pattern * (self.block_bytes // len(pattern) + 1))[: self.block_bytes]


async def returns_what_was_put(bench: StoreBench) -> None:
    """``get`` returns the whole block of its key, byte for byte."""
    async with bench.store() as store:
        kept = [number for number in range(4) if await store.put(bench.key(number), bench.block(number))]
        require(bool(kept), "an empty store kept none of 4 blocks")
        for number in kept:
            block = await store.get(bench.key(number))
            require(block is None or block == bench.block(number), f"block {number} came back changed")
        found = [number for number in kept if await store.get(bench.key(number)) is not None]
        require(bool(found), f"none of {len(kept)} kept blocks was found")


async def missing_is_none(bench: StoreBench) -> None:
    """A key that was never put has no block: ``get`` gives None and ``contains`` False."""
    async with bench.store() as store:
        await store.put(bench.key(1), bench.block(1))
        require(await store.get(bench.key(2)) is None, "a key that was never put has a block")
        require(await store.contains([bench.key(2)]) == [False], "contains() knows a key never put")


async def contains_answers_in_order(bench: StoreBench) -> None:
    """``contains`` has one answer per key, in their order; none for no keys."""
    async with bench.store() as store:
        is_kept = await store.put(bench.key(1), bench.block(1))
        answers = await store.contains([bench.key(2), bench.key(1), bench.key(2)])
        require(answers == [False, is_kept, False], f"contains() answered {answers}")
        require(await store.contains([]) == [], "contains([]) is not []")


async def delete_forgets(bench: StoreBench) -> None:
    """Deleted keys are gone, unknown ones are ignored, others stay."""
    async with bench.store() as store:
        await store.put(bench.key(1), bench.block(1))
        is_kept = await store.put(bench.key(2), bench.block(2))
        await store.delete([bench.key(1), bench.key(9)])
        await store.delete([bench.key(1)])
        await store.delete([])
        require(await store.get(bench.key(1)) is None, "a deleted block is still there")
        require(not is_kept or await store.get(bench.key(2)) is not None, "another block was deleted too")


async def copies_what_it_keeps(bench: StoreBench) -> None:
    """A block is not read after ``put`` has returned: its memory may be used again."""
    async with bench.store() as store:
        memory = bytearray(bench.block(1))
        await store.put(bench.key(1), memoryview(memory))
        memory[:] = bytes(len(memory))
        block = await store.get(bench.key(1))
        require(block is None or block == bench.block(1), "the store kept a view of the caller's memory")


async def puts_again(bench: StoreBench) -> None:
    """Putting a key again is allowed and counts once."""
    async with bench.store() as store:
        for _ in range(3):
            await store.put(bench.key(1), bench.block(1))
        num_blocks = store.statistics().num_blocks
        require(num_blocks <= 1, f"one key, put three times, counts as {num_blocks} blocks")
        require(await store.get(bench.key(1)) in (None, bench.block(1)), "the block has changed")


async def stays_within_capacity(bench: StoreBench) -> None:
    """However much is put, ``used_bytes`` stays within ``capacity_bytes``; what is left is right."""
    async with bench.store() as store:
        for number in range(64):
            await store.put(bench.key(number), bench.block(number))
            statistics = store.statistics()
            capacity_bytes = statistics.capacity_bytes
            require(
                capacity_bytes is None or statistics.used_bytes <= capacity_bytes,
                f"{statistics.used_bytes} bytes are used of {capacity_bytes}",
            )
        for number in range(64):
            block = await store.get(bench.key(number))
            require(block is None or block == bench.block(number), f"block {number} came back changed")


async def statistics_count(bench: StoreBench) -> None:
    """``statistics`` counts the blocks that are kept, and none after all are deleted."""
    async with bench.store() as store:
        kept = [number for number in range(3) if await store.put(bench.key(number), bench.block(number))]
        present = sum(await store.contains([bench.key(number) for number in range(3)]))
        statistics = store.statistics()
        require(statistics.num_blocks == present, f"{statistics.num_blocks} blocks counted of {present}")
        require(statistics.used_bytes > 0 or not present, f"{present} blocks use no byte")
        await store.delete([bench.key(number) for number in kept])
        require(store.statistics().num_blocks == 0, "deleted blocks are still counted")


async def serves_many_at_once(bench: StoreBench) -> None:
    """32 tasks that put, get and delete shared keys never see a part of a block or another block."""
    async with bench.store() as store:
        wrong: list[int] = []

        async def work(number: int) -> None:
            shared = number % 4
            for turn in range(4):
                for _ in range((number + turn) % 3):  # so that the tasks are not in step
                    await checkpoint()
                if await store.get(bench.key(shared)) not in (None, bench.block(shared)):
                    wrong.append(shared)
                await store.put(bench.key(shared), bench.block(shared))
                if number % 5 == 0:
                    await store.delete([bench.key(shared)])

        async with anyio.create_task_group() as tasks:
            for number in range(32):
                tasks.start_soon(work, number)
        require(not wrong, f"blocks {sorted(set(wrong))} came back changed")


async def cancelled_put_leaves_all_or_nothing(bench: StoreBench) -> None:
    """A cancelled ``put`` leaves the whole block or none, and the store works on."""
    async with bench.store() as store:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.put(bench.key(1), bench.block(1))
        require(await store.get(bench.key(1)) in (None, bench.block(1)), "a part of a block was kept")
        await store.put(bench.key(2), bench.block(2))
        require(await store.get(bench.key(2)) in (None, bench.block(2)), "the next block came back changed")


async def closes_twice(bench: StoreBench) -> None:
    """``close`` is idempotent, with and without a start."""
    store = bench.factory()
    await store.close()
    await store.close()
    async with bench.store() as started:
        await started.close()


STORE_CHECKS = (
    returns_what_was_put,
    missing_is_none,
    contains_answers_in_order,
    delete_forgets,
    copies_what_it_keeps,
    puts_again,
    stays_within_capacity,
    statistics_count,
    serves_many_at_once,
    cancelled_put_leaves_all_or_nothing,
    closes_twice,
)


async def check_kv_store(
    factory: Callable[[], KVStore], *, block_bytes: int = 4096, timeout_s: float = 30.0
) -> Report:
    """Run every store check with blocks of ``block_bytes``. ``factory()`` makes a store that is empty."""
    subject = subject_of(factory())
    bench = StoreBench(factory, block_bytes)
    return await run_checks(subject, STORE_CHECKS, bench, timeout_s=timeout_s)
