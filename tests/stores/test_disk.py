"""The disk store after restarts, crashes, damage, and on disks that are full, slow or broken."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager

import anyio
import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.interfaces import KVStoreFailureKind as Kind
from dynamo_sdk.stores import DiskStore
from dynamo_sdk.stores.block_file import BlockFile, OsBlockFile
from dynamo_sdk.stores.failures import NO_ROOM_S, REST_S
from dynamo_sdk.stores.slot_table import ENTRY_BYTES, HEADER_BYTES

from . import writing_process
from .conftest import BLOCK_BYTES, NUM_BLOCKS, Witness, block, disk_config, key

pytestmark = pytest.mark.anyio


class BadDisk(BlockFile):
    """A real file behind faults. ``write_error``, ``read_error``: what every call raises. ``bad_offsets``:
    reads that touch them fail. ``num_bytes``: writes beyond do not fit. ``gate``: calls wait for it."""

    def __init__(self, path, wants_direct):
        self._file = OsBlockFile(path, wants_direct=wants_direct)
        self.is_direct = self._file.is_direct
        self.write_error = self.read_error = self.num_bytes = self.gate = None
        self.bad_offsets = set()
        self.calls = []

    def write(self, offset, buffers):
        self._note("write", offset, buffers)
        size = sum(map(len, buffers))
        if self.write_error is not None:
            raise OSError(self.write_error, os.strerror(self.write_error))
        if self.num_bytes is not None and offset + size > self.num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.write(offset, buffers)

    def read(self, offset, buffers):
        self._note("read", offset, buffers)
        size = sum(map(len, buffers))
        if self.read_error is not None or any(offset <= bad < offset + size for bad in self.bad_offsets):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._file.read(offset, buffers)

    def _note(self, call, offset, buffers):
        self.calls.append((call, offset, sum(map(len, buffers))))
        if self.gate is not None:
            self.gate.wait(30)

    def truncate(self, num_bytes):
        self._file.truncate(num_bytes)

    def close(self):
        self._file.close()


@asynccontextmanager
async def started(config, open_file=None, monotonic_s=None):
    store = DiskStore(config) if open_file is None else DiskStore(config, open_file=open_file)
    if monotonic_s is not None:
        store._monotonic_s = monotonic_s
    store.witness = Witness()
    store.listen(store.witness)
    await store.start()
    try:
        yield store
        store.check_integrity()
        assert store.witness.keys == set(store._index.keys())
    finally:
        await store.close()


@asynccontextmanager
async def on_bad_disk(config, monotonic_s=None):
    disks = []

    def open_file(path, wants_direct):
        disks.append(BadDisk(path, wants_direct))
        return disks[0]

    async with started(config, open_file, monotonic_s) as store:
        yield store, disks[0]


async def put_numbers(store, numbers):
    return await store.put_many([BlockOffer(key(n), block(n)) for n in numbers])


async def found_numbers(store, numbers):
    """The numbers whose block is found; none of them may be wrong."""
    found = []
    for number in numbers:
        data = await store.get(key(number))
        assert data in (None, block(number))
        if data is not None:
            found.append(number)
    return found


async def test_restart_finds_all_in_their_order(tmp_path):
    config = disk_config(tmp_path)
    async with started(config) as store:
        await put_numbers(store, range(6))
        await store.delete([key(3)])
        await put_numbers(store, [6])  # into the slot of 3
        await store.delete([key(4)])
    async with started(config) as store:
        assert store.witness.keys == {key(n) for n in (0, 1, 2, 5, 6)}
        await put_numbers(store, [7, 8])  # 0 was written first, it goes first
        assert await found_numbers(store, range(9)) == [1, 2, 5, 6, 7, 8]


async def test_restart_keeps_lineage_and_priority(tmp_path):
    config = disk_config(tmp_path, eviction="leaf-first")
    async with started(config) as store:
        parents = [None, *map(key, range(5))]
        await store.put_many(
            [BlockOffer(key(n), block(n), parent) for n, parent in zip(range(6), parents, strict=True)]
        )
    async with started(config) as store:
        await put_numbers(store, [7])
        assert await found_numbers(store, range(8)) == [0, 1, 2, 3, 4, 7]


async def test_a_smaller_capacity_after_restart_is_kept(tmp_path):
    async with started(disk_config(tmp_path)) as store:
        await put_numbers(store, range(6))
    async with started(disk_config(tmp_path, num_blocks=2)) as store:
        assert await found_numbers(store, range(6)) == [0, 1]
    assert (tmp_path / "blocks").stat().st_size == 2 * BLOCK_BYTES


async def test_blocks_of_another_shape_are_not_found(tmp_path, caplog):
    async with started(disk_config(tmp_path)) as store:
        await put_numbers(store, range(6))
    assert not caplog.text
    async with started(disk_config(tmp_path, block_bytes=4096)) as store:
        assert store.statistics().num_blocks == 0
        assert await store.get(key(1)) is None
    assert f"{tmp_path}: the blocks of another size" in caplog.text


async def test_one_folder_has_one_store(tmp_path):
    async with started(disk_config(tmp_path)):
        with pytest.raises(ConfigError, match="another process keeps its blocks"):
            await DiskStore(disk_config(tmp_path)).start()


async def test_a_capacity_beyond_the_disk_is_refused_with_numbers(tmp_path):
    disk = os.statvfs(tmp_path)
    num_blocks = disk.f_blocks * disk.f_frsize // BLOCK_BYTES + 1
    with pytest.raises(ConfigError, match=r"of \d+ bytes does not fit into .*room for \d+"):
        await DiskStore(disk_config(tmp_path, num_blocks=num_blocks)).start()


async def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no disk store in"):
        await DiskStore(disk_config(tmp_path / "file")).start()


@pytest.mark.parametrize("offset", [0, 17, BLOCK_BYTES - 1])
async def test_a_flipped_bit_is_a_miss(tmp_path, offset):
    config = disk_config(tmp_path)
    async with started(config) as store:
        await put_numbers(store, range(6))
        flip(tmp_path / "blocks", 2 * BLOCK_BYTES + offset)
        assert await found_numbers(store, range(6)) == [0, 1, 3, 4, 5]
        assert [failure.kind for failure in store.witness.failures] == [Kind.CORRUPT]
        await put_numbers(store, [2])
        assert await found_numbers(store, [2]) == [2]
    async with started(config) as store:
        assert await found_numbers(store, range(6)) == [0, 1, 2, 3, 4, 5]


async def test_every_bit_of_a_table_entry_counts(tmp_path):
    config = disk_config(tmp_path, num_blocks=2)
    async with started(config) as store:
        await put_numbers(store, [0, 1])
    sound = (tmp_path / "table").read_bytes()
    for byte in range(ENTRY_BYTES):
        (tmp_path / "table").write_bytes(sound)
        flip(tmp_path / "table", HEADER_BYTES + byte)
        async with started(config) as store:
            assert await found_numbers(store, [0, 1]) == [1]


async def test_swapped_entries_do_not_swap_blocks(tmp_path):
    config = disk_config(tmp_path, num_blocks=2)
    async with started(config) as store:
        await put_numbers(store, [0, 1])
    table = (tmp_path / "table").read_bytes()
    head, one, two = (
        table[:HEADER_BYTES],
        table[HEADER_BYTES : HEADER_BYTES + ENTRY_BYTES],
        table[HEADER_BYTES + ENTRY_BYTES :],
    )
    (tmp_path / "table").write_bytes(head + two + one)
    async with started(config) as store:
        assert await found_numbers(store, [0, 1]) == []


async def test_swapped_blocks_are_misses(tmp_path):
    config = disk_config(tmp_path, num_blocks=2)
    async with started(config) as store:
        await put_numbers(store, [0, 1])
    blocks = (tmp_path / "blocks").read_bytes()
    (tmp_path / "blocks").write_bytes(blocks[BLOCK_BYTES:] + blocks[:BLOCK_BYTES])
    async with started(config) as store:
        assert await found_numbers(store, [0, 1]) == []
        assert {failure.kind for failure in store.witness.failures} == {Kind.CORRUPT}


@pytest.mark.parametrize("name", ["blocks", "table"])
@pytest.mark.parametrize("num_bytes", [0, 100, 3 * BLOCK_BYTES, HEADER_BYTES + ENTRY_BYTES + 50])
async def test_truncated_files(tmp_path, name, num_bytes):
    config = disk_config(tmp_path)
    async with started(config) as store:
        await put_numbers(store, range(6))
    os.truncate(tmp_path / name, num_bytes)
    async with started(config) as store:
        found = await found_numbers(store, range(6))
        num_left = (
            num_bytes // BLOCK_BYTES if name == "blocks" else max(0, num_bytes - HEADER_BYTES) // ENTRY_BYTES
        )
        assert found == list(range(6))[:num_left]
        await put_numbers(store, range(6, 12))
        assert len(await found_numbers(store, range(12))) == NUM_BLOCKS


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("num_batches", [1, 2, 5, 9])
async def test_kill_9_of_a_writing_process(tmp_path, num_batches):
    """It is killed in the middle of overwriting; what is found afterwards is right."""
    last = await anyio.to_thread.run_sync(killed_after, tmp_path, num_batches)
    number_of = {key(number): number for number in range(last + 10_000)}
    async with started(writing_process.config_of(tmp_path)) as store:
        assert store.statistics().num_blocks >= 48  # at most one batch of 16 was being written
        for found in list(store.witness.keys):
            assert await store.get(found) == block(number_of[found], writing_process.BLOCK_BYTES)
        assert store.witness.failures == []
        assert await put_numbers(store, [0]) == [False]  # another size
        store.check_integrity()


def killed_after(path, num_batches):
    """The number where the killed process's last known batch began."""
    command = [sys.executable, "-m", "tests.stores.writing_process", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        lines = [process.stdout.readline() for _ in range(num_batches)]
        process.send_signal(signal.SIGKILL)
        return int(lines[-1])


async def test_a_write_that_a_power_cut_tore_is_a_miss(tmp_path):
    """The table's page reached the disk, only half of the block did."""
    config = disk_config(tmp_path)
    async with started(config) as store:
        await put_numbers(store, range(6))
    with (tmp_path / "blocks").open("r+b") as file:
        file.seek(BLOCK_BYTES + BLOCK_BYTES // 2)
        file.write(block(99)[: BLOCK_BYTES // 2])
    async with started(config) as store:
        assert await found_numbers(store, range(6)) == [0, 2, 3, 4, 5]


async def test_a_full_disk_overwrites_what_it_has(tmp_path, caplog):
    now_s = 0.0
    async with on_bad_disk(disk_config(tmp_path), lambda: now_s) as (store, disk):
        disk.num_bytes = 3 * BLOCK_BYTES
        assert await put_numbers(store, range(3)) == [True] * 3
        assert await put_numbers(store, [3]) == [False]
        assert await put_numbers(store, [4, 5, 6, 7]) == [True, True, True, False]
        assert await found_numbers(store, range(8)) == [4, 5, 6]
        assert {failure.kind for failure in store.witness.failures} == {Kind.FULL}
        assert store.statistics().num_failures == 1
        assert len(caplog.records) == 1
        disk.num_bytes = None
        assert await put_numbers(store, [8]) == [True]
        assert store.statistics().num_blocks == 3
        now_s = NO_ROOM_S
        assert await put_numbers(store, [9, 10, 11]) == [True] * 3
        assert store.statistics().num_blocks == 6


async def test_a_real_limit_on_the_file(tmp_path):
    """The kernel refuses to let the file grow: as on a full disk, a part may have been written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with started(disk_config(tmp_path, is_direct=False)) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_BYTES + 4 * BLOCK_BYTES + 4096, hard))
        try:
            answers = await put_numbers(store, range(6))
            later = [(await put_numbers(store, [number]))[0] for number in range(6, 12)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert False in answers
        assert {failure.kind for failure in store.witness.failures} == {Kind.FULL}
        kept = [number for number, is_kept in enumerate([*answers, *later]) if is_kept]
        found = await found_numbers(store, range(12))
        assert set(found) <= set(kept)
        assert len(found) == store.statistics().num_blocks


async def test_a_broken_disk_is_left_alone_for_a_while(tmp_path, caplog):
    now_s = 0.0
    async with on_bad_disk(disk_config(tmp_path), lambda: now_s) as (store, disk):
        await put_numbers(store, range(4))
        disk.write_error = errno.EIO
        for number in range(10, 20):
            assert await put_numbers(store, [number]) == [False]
        assert sum(call == "write" and offset >= 4 * BLOCK_BYTES for call, offset, _ in disk.calls) == 3
        assert await found_numbers(store, range(4)) == [0, 1, 2, 3]  # reading still works
        assert {failure.kind for failure in store.witness.failures} == {Kind.IO}
        assert len(caplog.records) == 2  # what failed, and that it rests
        now_s, disk.write_error = REST_S, None
        assert await put_numbers(store, [20]) == [True]


async def test_reads_rest_on_their_own(tmp_path):
    now_s = 0.0
    async with on_bad_disk(disk_config(tmp_path), lambda: now_s) as (store, disk):
        await put_numbers(store, range(6))
        disk.read_error = errno.EIO
        assert await found_numbers(store, range(4)) == []
        assert await store.contains([key(4)]) == [False]
        assert await store.count_prefix([key(4)]) == 0
        assert sum(call == "read" for call, _, _ in disk.calls) == 3
        assert await put_numbers(store, [7]) == [True]
        now_s, disk.read_error = REST_S, None
        assert await found_numbers(store, [3, 4, 5, 7]) == [3, 4, 5, 7]


async def test_one_bad_sector_costs_one_block(tmp_path):
    config = disk_config(tmp_path, num_read_threads=1)
    async with on_bad_disk(config) as (store, disk):
        await put_numbers(store, range(6))
        disk.bad_offsets.add(2 * BLOCK_BYTES + 5)
        into = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(6)]
        found = await store.get_into([key(n) for n in range(6)], into)
        assert found == [True, True, False, True, True, True]
        assert all(into[n] == block(n) for n in (0, 1, 3, 4, 5))


async def test_neighbours_move_in_one_call(tmp_path):
    config = disk_config(tmp_path, num_read_threads=1, num_write_threads=1)
    async with on_bad_disk(config) as (store, disk):
        await put_numbers(store, range(6))
        into = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(5)]
        await store.get_into([key(n) for n in (5, 1, 0, 3, 4)], into)
        assert disk.calls == [
            ("write", 0, 6 * BLOCK_BYTES),
            ("read", 0, 2 * BLOCK_BYTES),
            ("read", 3 * BLOCK_BYTES, 3 * BLOCK_BYTES),
        ]


async def test_a_slow_disk_holds_nobody_up(tmp_path):
    """Writes stand still: offers beyond the bound are refused at once, others' reads go on."""
    config = disk_config(tmp_path, max_pending_write_bytes=2 * BLOCK_BYTES, num_read_threads=1)
    async with on_bad_disk(config) as (store, disk):
        await put_numbers(store, [0])
        disk.gate = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put_numbers, store, [1, 2])
            await anyio.wait_all_tasks_blocked()
            assert store.statistics().num_pending == 1
            assert await put_numbers(store, [3]) == [False]
            assert [failure.kind for failure in store.witness.failures] == [Kind.BUSY]
            assert await store.contains([key(0), key(1)]) == [True, False]
            disk.gate.set()
        assert await found_numbers(store, range(4)) == [0, 1, 2]


async def test_a_cancelled_read_returns_when_its_memory_is_free(tmp_path):
    """A block that is being read keeps its slot, also when it is deleted meanwhile."""
    config = disk_config(tmp_path, num_blocks=2, num_read_threads=1)
    async with on_bad_disk(config) as (store, disk):
        await put_numbers(store, [0, 1])
        disk.gate = threading.Event()
        scope, memory = anyio.CancelScope(), memoryview(bytearray(BLOCK_BYTES))
        is_over = anyio.Event()

        async def read():
            with scope:
                await store.get_into([key(0)], [memory])
            is_over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not is_over.is_set()
            await store.delete([key(0)])
            assert store.statistics().used_bytes == 2 * BLOCK_BYTES
            disk.gate.set()
        assert is_over.is_set()
        assert store.statistics().used_bytes == BLOCK_BYTES


async def test_close_waits_for_what_is_under_way(tmp_path):
    async with on_bad_disk(disk_config(tmp_path)) as (store, disk):
        disk.gate = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put_numbers, store, [0])
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(store.close)
            await anyio.wait_all_tasks_blocked()
            disk.gate.set()
    async with started(disk_config(tmp_path)) as store:
        assert await found_numbers(store, [0]) == [0]
