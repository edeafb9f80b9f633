"""``check_kv_store``: does anybody's store keep the promises of ``KVStore``?"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.interfaces import CacheKey, KVStore

from .kit import Kit
from .places import Subject
from .report import NotApplicable, Report, require


@dataclass(slots=True)
class StoreBench:
    """``factory`` makes an empty store, or ``on_disk`` one over a folder."""

    factory: Callable[[], KVStore] | None
    on_disk: Callable[[Path], KVStore] | None
    block_bytes: int
    _folders: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)

    def new_store(self) -> KVStore:
        """An empty store, not yet started."""
        if self.on_disk is not None:
            return self.on_disk(self._new_folder())
        if self.factory is None:
            raise TypeError("give either factory or on_disk")
        return self.factory()

    def store(self) -> AbstractAsyncContextManager[KVStore]:
        """An empty store, started."""
        return _open(self.new_store())

    def over_one_folder(self) -> Callable[[], KVStore]:
        """What makes stores over one folder, again and again. Skips the check for stores without one."""
        if self.on_disk is None:
            raise NotApplicable("the store does not keep its blocks on disk")
        return partial(self.on_disk, self._new_folder())

    def files(self) -> list[Path]:
        """All files in the newest folder."""
        return [path for path in Path(self._folders[-1].name).rglob("*") if path.is_file()]

    async def discard(self) -> None:
        """Remove the folders."""
        while self._folders:
            self._folders.pop().cleanup()

    def _new_folder(self) -> Path:
        self._folders.append(tempfile.TemporaryDirectory(prefix="dynamo-sdk-check-"))
        return Path(self._folders[-1].name)

    def key(self, number: int) -> CacheKey:
        return CacheKey(hashlib.blake2b(b"key %d" % number, digest_size=16).digest())

    def block(self, number: int) -> bytes:
        """Different bytes for each number, none of them mostly zero."""
        pattern = hashlib.blake2b(b"block %d" % number).digest()
        return (pattern * (self.block_bytes // len(pattern) + 1))[: self.block_bytes]


@asynccontextmanager
async def _open(store: KVStore) -> AsyncIterator[KVStore]:
    try:
        await store.start()
        yield store
    finally:
        await store.close()


async def returns_what_was_put(bench: StoreBench) -> None:
    """``get`` returns the whole block of its key, byte for byte.

    Half a block, or another one, changes a client's text without an error. Write the length down with the
    block, and compare.
    """
    async with bench.store() as store:
        kept = [number for number in range(4) if await store.put(bench.key(number), bench.block(number))]
        require(bool(kept), "an empty store kept none of 4 blocks")
        for number in kept:
            block = await store.get(bench.key(number))
            require(block is None or block == bench.block(number), f"block {number} came back changed")
        found = [number for number in kept if await store.get(bench.key(number)) is not None]
        require(bool(found), f"none of {len(kept)} kept blocks was found")


async def missing_is_none(bench: StoreBench) -> None:
    """A key that was never put has no block: ``get`` gives None and ``contains`` False.

    A miss is the normal case. Do not raise for it.
    """
    async with bench.store() as store:
        await store.put(bench.key(1), bench.block(1))
        require(await store.get(bench.key(2)) is None, "a key that was never put has a block")
        require(await store.contains([bench.key(2)]) == [False], "contains() knows a key never put")


async def contains_answers_in_order(bench: StoreBench) -> None:
    """``contains`` has one answer per key, in their order; none for no keys.

    Callers zip keys and answers. Do not drop doubles.
    """
    async with bench.store() as store:
        is_kept = await store.put(bench.key(1), bench.block(1))
        answers = await store.contains([bench.key(2), bench.key(1), bench.key(2)])
        require(answers == [False, is_kept, False], f"contains() answered {answers}")
        require(await store.contains([]) == [], "contains([]) is not []")


async def delete_forgets(bench: StoreBench) -> None:
    """Deleted keys are gone, unknown ones are ignored, others stay.

    Deletion follows a change of the model. An unknown key is no error: another tier may have dropped it.
    """
    async with bench.store() as store:
        await store.put(bench.key(1), bench.block(1))
        is_kept = await store.put(bench.key(2), bench.block(2))
        await store.delete([bench.key(1), bench.key(9)])
        await store.delete([bench.key(1)])
        await store.delete([])
        require(await store.get(bench.key(1)) is None, "a deleted block is still there")
        require(not is_kept or await store.get(bench.key(2)) is not None, "another block was deleted too")


async def copies_what_it_keeps(bench: StoreBench) -> None:
    """A block is not read after ``put`` has returned: its memory may be used again.

    The caller's memory is a device's pinned buffer, which the next block overwrites. Take
    ``bytes(block)`` before the first await.
    """
    async with bench.store() as store:
        memory = bytearray(bench.block(1))
        await store.put(bench.key(1), memoryview(memory))
        memory[:] = bytes(len(memory))
        block = await store.get(bench.key(1))
        require(block is None or block == bench.block(1), "the store kept a view of the caller's memory")


async def puts_again(bench: StoreBench) -> None:
    """Putting a key again is allowed and counts once.

    Several workers compute the same block. Take the old one's size off before the new one's is added.
    """
    async with bench.store() as store:
        for _ in range(3):
            await store.put(bench.key(1), bench.block(1))
        num_blocks = store.statistics().num_blocks
        require(num_blocks <= 1, f"one key, put three times, counts as {num_blocks} blocks")
        require(await store.get(bench.key(1)) in (None, bench.block(1)), "the block has changed")


async def stays_within_capacity(bench: StoreBench) -> None:
    """However much is put, ``used_bytes`` stays within ``capacity_bytes``; what is left is right.

    Beyond it the host runs out of memory or the disk out of space. Make room before writing; a block that is
    too large is refused with False.
    """
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
    """``statistics`` counts the blocks that are kept, and none after all are deleted.

    Capacity planning reads them. Count in the same place where blocks come and go.
    """
    async with bench.store() as store:
        kept = [number for number in range(3) if await store.put(bench.key(number), bench.block(number))]
        present = sum(await store.contains([bench.key(number) for number in range(3)]))
        statistics = store.statistics()
        require(statistics.num_blocks == present, f"{statistics.num_blocks} blocks counted of {present}")
        require(statistics.used_bytes > 0 or not present, f"{present} blocks use no byte")
        await store.delete([bench.key(number) for number in kept])
        require(store.statistics().num_blocks == 0, "deleted blocks are still counted")


async def serves_many_at_once(bench: StoreBench) -> None:
    """32 tasks that put, get and delete shared keys never see a part of a block or another block.

    Write somewhere else, and put the whole block in its place in one step.
    """
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
    """A cancelled ``put`` leaves the whole block or none, and the store works on.

    Requests end at any await. A block that was written halfway must not be found.
    """
    async with bench.store() as store:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.put(bench.key(1), bench.block(1))
        require(await store.get(bench.key(1)) in (None, bench.block(1)), "a part of a block was kept")
        await store.put(bench.key(2), bench.block(2))
        require(await store.get(bench.key(2)) in (None, bench.block(2)), "the next block came back changed")


async def closes_twice(bench: StoreBench) -> None:
    """``close`` is idempotent, with and without a start.

    Shutdown has more than one path. Remember that the store is closed, and return.
    """
    store = bench.new_store()
    await store.close()
    await store.close()
    async with bench.store() as started:
        await started.close()


async def survives_a_restart(bench: StoreBench) -> None:
    """Closed and made again over the same folder, a store on disk returns what was put, or nothing; it has
    not lost everything.

    A cache on disk is worth its start-up. Write an index, or find the blocks by their file names.
    """
    make = bench.over_one_folder()
    kept = await _put_and_close(bench, make())
    async with _open(make()) as store:
        found = [number for number in kept if await _is_right(bench, store, number)]
    require(not kept or bool(found), f"none of {len(kept)} blocks was there after a restart")


async def damage_is_not_returned(bench: StoreBench) -> None:
    """When bytes on disk have changed, or files were cut off, ``get`` gives None or the right block.

    A crash leaves torn files, and disks lose bits. Keep a checksum with each block, and compare before
    returning it.
    """
    for damage in (_flip_a_byte, _cut_in_half, _empty):
        make = bench.over_one_folder()
        kept = await _put_and_close(bench, make())
        for file in bench.files():
            damage(file)
        async with _open(make()) as store:
            for number in kept:
                await _is_right(bench, store, number)
            await store.put(bench.key(9), bench.block(9))
            await _is_right(bench, store, 9)


async def _put_and_close(bench: StoreBench, store: KVStore) -> list[int]:
    """The numbers of the blocks that it has kept."""
    async with _open(store):
        return [number for number in range(4) if await store.put(bench.key(number), bench.block(number))]


async def _is_right(bench: StoreBench, store: KVStore, number: int) -> bool:
    """Whether the block is found; fails the check when it is found and wrong."""
    block = await store.get(bench.key(number))
    require(block in (None, bench.block(number)), f"block {number} came back changed")
    return block is not None


def _flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)


def _cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


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
    survives_a_restart,
    damage_is_not_returned,
)


def kv_store_kit(
    factory: Callable[[], KVStore] | None = None,
    *,
    on_disk: Callable[[Path], KVStore] | None = None,
    block_bytes: int = 4096,
    timeout_s: float = 30.0,
) -> Kit[StoreBench]:
    """The store checks, ready to run, with blocks of ``block_bytes``.

    Give one of both: ``factory()`` makes a store that is empty; ``on_disk(folder)`` makes one that keeps its
    blocks in ``folder``, and finds those that another one has left there.
    """
    bench = StoreBench(factory, on_disk, block_bytes)
    return Kit(
        subject=Subject.of(bench.new_store()),
        checks=STORE_CHECKS,
        bench=bench,
        timeout_s=timeout_s,
        discard=bench.discard,
    )


async def check_kv_store(
    factory: Callable[[], KVStore] | None = None,
    *,
    on_disk: Callable[[Path], KVStore] | None = None,
    block_bytes: int = 4096,
    timeout_s: float = 30.0,
) -> Report:
    """Run every store check; the arguments are those of ``kv_store_kit``."""
    return await kv_store_kit(factory, on_disk=on_disk, block_bytes=block_bytes, timeout_s=timeout_s).run()
