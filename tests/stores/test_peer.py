"""Blocks of another worker's tiers: through real sockets, from peers that are full, slow, wrong or dead."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from dynamo_sdk.interfaces import KVStore
from dynamo_sdk.interfaces import KVStoreFailureKind as Kind
from dynamo_sdk.stores import (
    DiskStore,
    PeerServer,
    PeerStore,
    PeerStoreConfig,
)
from dynamo_sdk.stores.checksum import block_checksum
from dynamo_sdk.stores.failures import REST_S
from dynamo_sdk.stores.peer_wire import Ask, Piece, frame
from dynamo_sdk.testing import check_kv_store
from dynamo_sdk.transfer import wire

from . import peer_process
from .conftest import BLOCK_BYTES, block, disk_config, key
from .peers import (
    LARGE_BYTES,
    buffers,
    fake_peer,
    greeted,
    offers,
    open_store,
    ram,
    read,
    reading,
    serving,
    source,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


class Bridge(KVStore):
    """Puts into a worker's RAM, gets through that worker's peer server."""

    def __init__(self):
        self.ram = ram()
        self.server = PeerServer([self.ram], BLOCK_BYTES)
        self.reader = PeerStore(PeerStoreConfig(block_bytes=BLOCK_BYTES, timeout_s=30))
        self.address = ""

    async def start(self):
        await self.ram.start()
        [self.address] = await self.server.start(["tcp:127.0.0.1:0"])
        await self.reader.start()

    async def put(self, key, block):
        is_kept = await self.ram.put(key, block)
        self.reader.expect([key], source(self.address))
        return is_kept

    async def get(self, key):
        return await self.reader.get(key)

    async def contains(self, keys):
        return await self.reader.contains(keys)

    async def delete(self, keys):
        await self.ram.delete(keys)
        await self.reader.delete(keys)

    def statistics(self):
        return self.ram.statistics()

    async def close(self):
        await self.reader.close()
        await self.server.close()
        await self.ram.close()


async def test_conformance_through_a_socket():
    report = await check_kv_store(Bridge, block_bytes=BLOCK_BYTES)
    report.raise_if_failed()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("size", [5000, LARGE_BYTES], ids=["small", "large"])
async def test_blocks_come_from_the_fastest_tier_that_has_them(kind, size, tmp_path):
    address = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/kv"
    disk = DiskStore(disk_config(tmp_path / "disk", num_blocks=64, block_bytes=size))
    async with open_store(ram(block_bytes=size)) as memory, open_store(disk):
        await memory.put_many(offers(range(0, 30, 2), size))
        await disk.put_many(offers(range(25), size))
        async with serving([memory, disk], address, size, secret=b"s") as server:
            async with reading(b"s", size) as store:
                store.expect([key(number) for number in range(40)], source(server.address))
                assert await store.count_prefix([key(number) for number in range(50)]) == 40
                expected = [*range(25), 26, 28]
                assert await read(store, range(50), size) == expected
                assert await store.count_prefix([key(number) for number in range(50)]) == 25
                assert store.statistics().num_hits == len(expected)
                assert disk.statistics().num_hits == 12
                assert await read(store, [3, 4], size) == [3, 4]
                assert server.statistics().num_connections == 1
                assert not store.witness.failures
                assert await store.put(key(1), block(1, size)) is False


async def test_nobody_is_asked_unless_a_request_says_so():
    async with open_store(ram()) as memory, serving([memory]) as server, reading(expect_s=30) as store:
        await memory.put_many(offers([1, 2]))
        assert await store.contains([key(1)]) == [False]
        assert await read(store, [1]) == []
        assert server.statistics().num_asks == 0
        store.expect([key(1), key(2)], source(server.address))
        assert await store.contains([key(1), key(3)]) == [True, False]
        assert server.statistics().num_asks == 0
        store.clock.now_s += 31
        assert await store.contains([key(1)]) == [False]
        assert await read(store, [1, 2]) == []
        assert server.statistics().num_asks == 0


async def test_several_peers_answer_one_batch():
    async with open_store(ram()) as one, open_store(ram()) as two, reading() as store:
        await one.put_many(offers([1, 2]))
        await two.put_many(offers([3, 4]))
        async with serving([one]) as server_one, serving([two]) as server_two:
            store.expect([key(n) for n in (1, 2, 3, 4)], source(server_one.address))
            store.expect([key(n) for n in (3, 4)], source(server_two.address))
            assert await read(store, [4, 1, 3, 2]) == [4, 1, 3, 2]


async def test_what_is_evicted_while_it_is_read_is_right_or_missing():
    """The owner overwrites its few slots all the time."""
    size = 64 << 10
    async with open_store(ram(8, size)) as memory, serving([memory], block_bytes=size) as server:
        async with reading(block_bytes=size) as store:
            num_found, is_over = 0, False

            async def overwrite():
                for turn in itertools.count():
                    if is_over:
                        return
                    await memory.put_many(offers([turn % 12, (turn + 5) % 12], size))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(overwrite)
                for _ in range(150):
                    store.expect([key(number) for number in range(12)], source(server.address))
                    num_found += len(await read(store, range(12), size))
                is_over = True
            assert num_found > 150
            assert not store.witness.failures
            memory.check_integrity()


@pytest.mark.parametrize("secret", [None, b"another"])
async def test_strangers_get_nothing(secret, caplog):
    async with open_store(ram()) as memory, serving([memory], secret=b"known") as server:
        await memory.put_many(offers([1]))
        async with reading(secret) as store:
            store.expect([key(1)], source(server.address))
            assert await read(store, [1]) == []
            assert "secret" in store.witness.failures[0].message
            assert server.statistics().num_asks == 0


async def test_other_block_sizes_are_refused():
    async with open_store(ram()) as memory, serving([memory]) as server:
        async with reading(block_bytes=100) as store:
            store.expect([key(1)], source(server.address))
            assert await read(store, [1], 100) == []
            assert f"blocks are {BLOCK_BYTES} bytes here, not 100" in store.witness.failures[0].message


async def test_a_peer_with_too_many_readers_says_so():
    async with open_store(ram()) as memory, serving([memory], max_waiting=0) as server:
        await memory.put_many(offers([1]))
        async with reading() as store:
            store.expect([key(1)], source(server.address))
            assert await read(store, [1]) == []
            assert [failure.kind for failure in store.witness.failures] == [Kind.BUSY]
            assert server.statistics().num_refused == 1


async def test_a_restarted_peer_is_connected_to_again(tmp_path):
    address = f"unix:{tmp_path}/kv"
    async with open_store(ram()) as memory, reading() as store:
        await memory.put_many(offers([1, 2]))
        async with serving([memory], address):
            store.expect([key(1), key(2)], source(address))
            assert await read(store, [1]) == [1]
        async with serving([memory], address):
            assert await read(store, [2]) == [2]
        assert not store.witness.failures


def whole_piece():
    blocks = [block(1), block(2)]
    checksums = b"".join(block_checksum(key(n), memoryview(block(n))) for n in (1, 2))
    return frame(Piece(b"\1\1", checksums)), blocks


async def test_a_peer_that_dies_in_the_middle_costs_no_more_than_its_blocks(caplog):
    async def answer(writer):
        head, blocks = whole_piece()
        writer.write(head + blocks[0] + blocks[1][:100])

    async with fake_peer(answer) as peer, reading() as store:
        for turn in range(4):
            store.expect([key(1), key(2)], source(peer.address))
            assert await store.count_prefix([key(1)]) == (turn < 3)
            assert await read(store, [1, 2]) == []  # the piece was not whole: nothing of it counts
        assert peer.num_asks == 3
        assert {failure.kind for failure in store.witness.failures} == {Kind.IO}
        assert len([line for line in caplog.messages if "not kept or found" in line]) == 1
        store.clock.now_s += REST_S + 1
        assert await store.count_prefix([key(1)]) == 1


async def test_a_peer_that_says_nothing_is_waited_for_so_long(caplog):
    async def answer(writer):
        await asyncio.Event().wait()

    async with fake_peer(answer) as peer, reading(timeout_s=0.2) as store:
        store.expect([key(1)], source(peer.address))
        with anyio.fail_after(10):
            assert await read(store, [1]) == []
        assert peer.address in store.witness.failures[0].message


@pytest.mark.parametrize("damage", ["bytes", "checksum", "another block"])
async def test_wrong_bytes_are_never_believed(damage):
    async def answer(writer):
        head, blocks = whole_piece()
        if damage == "checksum":
            checksum = block_checksum(key(9), memoryview(block(1)))
            head = frame(Piece(b"\1\1", checksum + block_checksum(key(2), memoryview(block(2)))))
        if damage == "bytes":
            blocks[0] = blocks[0][:-1] + bytes([blocks[0][-1] ^ 1])
        if damage == "another block":
            blocks[0] = block(7)
        writer.write(head + blocks[0] + blocks[1])

    async with fake_peer(answer) as peer, reading() as store:
        store.expect([key(1), key(2)], source(peer.address))
        assert await read(store, [1, 2]) == [2]
        assert [failure.kind for failure in store.witness.failures] == [Kind.CORRUPT]


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff" * 64,
        wire.frame(wire.Claimed()),
        frame(Piece(b"\1", bytes(16))),
        frame(Piece(b"\1\1", bytes(16))),
        frame(Piece(b"\1\1\1", bytes(48))),
    ],
    ids=["junk", "another message", "too few", "no checksum", "too many"],
)
async def test_nonsense_is_a_miss(answer):
    async def say(writer):
        writer.write(answer)

    async with fake_peer(say) as peer, reading(timeout_s=1) as store:
        store.expect([key(1), key(2)], source(peer.address))
        assert await read(store, [1, 2]) == []
        assert [failure.kind for failure in store.witness.failures] == [Kind.IO]


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:9", "unix:/nowhere/kv", "nonsense"])
async def test_nobody_there_is_a_miss(address):
    async with reading() as store:
        store.expect([key(1)], source(address))
        assert await read(store, [1]) == []
        assert await store.count_prefix([key(1)]) == 0  # forgotten at once
        assert [failure.kind for failure in store.witness.failures] == [Kind.IO]


async def test_cancelled_reads_leave_both_sides_whole():
    size = LARGE_BYTES
    async with open_store(ram(24, size)) as memory, serving([memory], block_bytes=size) as server:
        await memory.put_many(offers(range(24), size))
        async with reading(block_bytes=size) as store:
            for turn in range(12):
                store.expect([key(number) for number in range(24)], source(server.address))
                with anyio.move_on_after(0.0005 * turn):
                    await read(store, range(24), size)
            store.expect([key(number) for number in range(24)], source(server.address))
            assert await read(store, range(24), size) == [*range(24)]


async def test_a_read_that_was_given_up_is_not_begun_again():
    async def answer(writer):
        await asyncio.Event().wait()

    async with fake_peer(answer) as peer, reading() as store:
        store.expect([key(1), key(2)], source(peer.address))
        with anyio.move_on_after(0.1):
            await read(store, [1])
        assert await store.contains([key(1), key(2)]) == [False, True]
        assert not store.witness.failures


async def test_a_reader_that_does_not_read_is_left():
    size = LARGE_BYTES
    async with open_store(ram(16, size)) as memory:
        await memory.put_many(offers(range(16), size))
        async with serving([memory], block_bytes=size, piece_s=0.2) as server:
            _, writer = await greeted(server.address)
            writer.write(frame(Ask(size, [key(number) for number in range(16)])))
            with anyio.fail_after(20):
                while server.statistics().num_connections:
                    await anyio.lowlevel.checkpoint()
            writer.close()


@pytest.mark.parametrize(
    "question",
    [b"\x04\0\0\0junk", frame(Ask(BLOCK_BYTES, [])), frame(Ask(BLOCK_BYTES, [b"k"] * 20000)), b"\xff" * 8],
    ids=["junk", "no keys", "too many keys", "too long"],
)
async def test_bad_readers_are_turned_away(question):
    async with open_store(ram()) as memory, serving([memory]) as server:
        reader, writer = await greeted(server.address)
        writer.write(question)
        with anyio.fail_after(20), contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_a_killed_peer_is_a_miss_within_bounds(tmp_path):
    num_blocks = 48
    root = Path(peer_process.__file__).parents[2]
    command = [sys.executable, "-m", "tests.stores.peer_process"]
    process = subprocess.Popen(  # noqa: ASYNC220  it takes no time
        [*command, f"unix:{tmp_path}/kv", str(LARGE_BYTES), str(num_blocks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    with process:
        try:
            address = await asyncio.to_thread(process.stdout.readline)
            async with reading(block_bytes=LARGE_BYTES, timeout_s=5) as store:
                store.expect([key(number) for number in range(num_blocks)], source(address.strip()))
                assert await read(store, range(4), LARGE_BYTES) == [0, 1, 2, 3]
                into = buffers(num_blocks, LARGE_BYTES)
                keys = [key(number) for number in range(num_blocks)]
                found = []

                async def read_all():
                    found.extend(await store.get_into(keys, into))

                with anyio.fail_after(20):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(read_all)
                        while not any(into[2][:64]):  # the first piece is arriving
                            await anyio.lowlevel.checkpoint()
                        process.send_signal(signal.SIGKILL)
                for number, is_found in enumerate(found):
                    assert not is_found or into[number] == block(number, LARGE_BYTES)
                assert await store.count_prefix(keys) in (0, num_blocks)
                await store.get_into(keys, into)
                assert await store.count_prefix(keys) == 0
        finally:
            process.kill()
