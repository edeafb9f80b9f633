"""How much of the machine's own speed the cache tiers keep.

RAM: putting and getting a batch of blocks, next to plain copies of the same blocks between the same memories.
Disk: next to raw sequential access to a file that is laid out already, with direct I/O and calls of the same
block size, by one thread and by as many as the store has (`raw x4`). All turns of a round are interleaved,
so that whatever disturbs the machine disturbs all of them; figures are medians, a ratio is the median
of the rounds' ratios. The store's time includes checksums, its table and the way to its threads and back.

    python benchmarks/kv_stores.py [--rounds 15] [--folder .] [--only ram|disk] [--block-kib 64 4096]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dynamo_sdk.interfaces import BlockOffer, CacheKey, KVStore
from dynamo_sdk.stores import DiskStore, DiskStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.transfer.host_pages import private_memory

BATCH_BYTES = 64 << 20
NUM_BATCHES = 2  # the store holds so many, so that every batch evicts an earlier one
NUM_THREADS = 4
NUM_WARM_UP = 2

Turn = Callable[[], Awaitable[None]]


def keys_of(batch: int, num_blocks: int) -> list[CacheKey]:
    return [
        CacheKey(blake2b(b"%d %d" % (batch, block), digest_size=16).digest()) for block in range(num_blocks)
    ]


class Memories:
    """A batch of blocks to put, and room for one to get."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.num_blocks = BATCH_BYTES // block_bytes
        self.source, self.target = (private_memory(BATCH_BYTES, is_populated=True) for _ in range(2))
        np.frombuffer(self.source, np.uint8)[:] = np.random.default_rng(1).integers(0, 256, BATCH_BYTES)

    def blocks(self, memory: memoryview) -> list[memoryview]:
        size = self.block_bytes
        return [memory[start : start + size] for start in range(0, BATCH_BYTES, size)]


class StoreTurns:
    """``put`` stores the next batch; ``get`` reads the last one back. Keys are made beforehand: whoever
    offers a block knows its key."""

    def __init__(self, store: KVStore, memories: Memories, num_batches: int) -> None:
        self._store = store
        self._sources, self._targets = memories.blocks(memories.source), memories.blocks(memories.target)
        self._batches = iter([keys_of(batch, memories.num_blocks) for batch in range(num_batches)])
        self._keys: list[CacheKey] = []

    async def put(self) -> None:
        self._keys = next(self._batches)
        kept = await self._store.put_many(
            [BlockOffer(key, block) for key, block in zip(self._keys, self._sources, strict=True)]
        )
        assert all(kept)

    async def get(self) -> None:
        assert all(await self._store.get_into(self._keys, self._targets))


class CopyTurns:
    """Each block to its place and back, one by one, in as much memory as the store has."""

    def __init__(self, memories: Memories) -> None:
        self._sources, self._targets = (
            [np.frombuffer(block, np.uint8) for block in memories.blocks(memory)]
            for memory in (memories.source, memories.target)
        )
        self._batches = [
            [
                np.frombuffer(block, np.uint8)
                for block in memories.blocks(private_memory(BATCH_BYTES, is_populated=True))
            ]
            for _ in range(NUM_BATCHES)
        ]

    async def copy_in(self) -> None:
        self._batches.append(self._batches.pop(0))
        for source, target in zip(self._sources, self._batches[-1], strict=True):
            np.copyto(target, source)

    async def copy_out(self) -> None:
        for source, target in zip(self._batches[-1], self._targets, strict=True):
            np.copyto(target, source)


@contextmanager
def raw_file(path: Path, memories: Memories) -> Iterator[Callable[[bool, int], Turn]]:
    """Makes turns of sequential access to a file: ``(is_write, number of threads)``."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    size, num_blocks = memories.block_bytes, memories.num_blocks
    batch = 0

    def access(is_write: bool, first: int, step: int, base: int) -> None:
        memory = memories.source if is_write else memories.target
        for block in range(first, first + step):
            piece = [memory[block * size : (block + 1) * size]]
            offset = base + block * size
            num_bytes = os.pwritev(fd, piece, offset) if is_write else os.preadv(fd, piece, offset)
            assert num_bytes == size

    def turn_of(is_write: bool, num_threads: int) -> Turn:
        async def turn() -> None:
            nonlocal batch
            batch += is_write
            base = batch % NUM_BATCHES * BATCH_BYTES
            if num_threads == 1:
                access(is_write, 0, num_blocks, base)
                return
            step = num_blocks // num_threads
            list(threads.map(lambda first: access(is_write, first, step, base), range(0, num_blocks, step)))

        return turn

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        try:
            for base in range(NUM_BATCHES):  # laid out before it is measured
                access(True, 0, num_blocks, base * BATCH_BYTES)
            yield turn_of
        finally:
            os.close(fd)
            path.unlink()


async def measure(turns: dict[str, Turn], num_rounds: int) -> dict[str, list[float]]:
    """GB/s of every turn, round by round; two rounds to warm up are not counted."""
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(num_rounds + NUM_WARM_UP):
        for name, turn in turns.items():
            begin_s = time.perf_counter()
            await turn()
            rates[name].append(BATCH_BYTES / (time.perf_counter() - begin_s) / 1e9)
    return {name: values[NUM_WARM_UP:] for name, values in rates.items()}


def show(title: str, rates: dict[str, list[float]], against: dict[str, tuple[str, ...]]) -> None:
    print(title)
    for name, values in rates.items():
        ratios = [
            f"{statistics.median(a / b for a, b in zip(values, rates[base], strict=True)):.2f} of {base}"
            for base in against.get(name, ())
        ]
        print(f"  {name:12}{statistics.median(values):7.2f} GB/s   {', '.join(ratios)}")


async def ram(block_bytes: int, num_rounds: int) -> None:
    memories = Memories(block_bytes)
    store = RamStore(RamStoreConfig(block_bytes=block_bytes, capacity_bytes=NUM_BATCHES * BATCH_BYTES))
    await store.start()
    store_turns = StoreTurns(store, memories, num_rounds + NUM_WARM_UP + NUM_BATCHES)
    copies = CopyTurns(memories)
    turns = {
        "copy in": copies.copy_in,
        "put": store_turns.put,
        "copy out": copies.copy_out,
        "get": store_turns.get,
    }
    rates = await measure(turns, num_rounds)
    await store.close()
    show(f"ram, blocks of {block_bytes >> 10} KiB", rates, {"put": ("copy in",), "get": ("copy out",)})


async def disk(block_bytes: int, num_rounds: int, folder: Path) -> None:
    memories = Memories(block_bytes)
    with tempfile.TemporaryDirectory(dir=folder) as path:
        config = DiskStoreConfig(
            path=Path(path), block_bytes=block_bytes, capacity_bytes=NUM_BATCHES * BATCH_BYTES
        )
        store = DiskStore(config)
        await store.start()
        store_turns = StoreTurns(store, memories, num_rounds + NUM_WARM_UP + NUM_BATCHES)
        with raw_file(Path(path) / "raw", memories) as raw:
            turns = {
                "raw write": raw(True, 1),
                "raw write x4": raw(True, NUM_THREADS),
                "put": store_turns.put,
                "raw read": raw(False, 1),
                "raw read x4": raw(False, NUM_THREADS),
                "get": store_turns.get,
            }
            for _ in range(NUM_BATCHES):
                await store_turns.put()  # the store's file is laid out, too
            rates = await measure(turns, num_rounds)
        await store.close()
    against = {"put": ("raw write", "raw write x4"), "get": ("raw read", "raw read x4")}
    show(f"disk, blocks of {block_bytes >> 10} KiB", rates, against)


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--only", choices=("ram", "disk"))
    parser.add_argument("--block-kib", type=int, nargs="+", default=[64, 4096])
    arguments = parser.parse_args()
    for block_kib in arguments.block_kib:
        if arguments.only != "disk":
            await ram(block_kib << 10, arguments.rounds)
        if arguments.only != "ram":
            await disk(block_kib << 10, arguments.rounds, arguments.folder)


if __name__ == "__main__":
    asyncio.run(main())
