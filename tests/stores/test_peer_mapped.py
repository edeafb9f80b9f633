"""Blocks of a worker of the same host come through memory that the reader maps; where that does not work,
through the socket."""

import contextlib
import gc
from pathlib import Path

import anyio
import pytest

from dynamo_sdk.interfaces import KVStoreFailureKind as Kind
from dynamo_sdk.stores import peer_exchange
from dynamo_sdk.stores.checksum import block_checksum
from dynamo_sdk.stores.peer import FORGET_S
from dynamo_sdk.stores.peer_wire import TAKEN, Ask, Piece, decode_answer, frame
from dynamo_sdk.transfer.host import HostIdentity, host_identity
from dynamo_sdk.transfer.host_pages import SharedMemory
from dynamo_sdk.transfer.region import Mappings, describe_region, map_region

from .conftest import BLOCK_BYTES, block, key
from .peers import LARGE_BYTES, fake_peer, greeted, offers, open_store, ram, read, reading, serving, source

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "kv")


@pytest.fixture
def streamed(monkeypatch):
    """How many blocks came through a socket."""
    numbers = []
    receive = peer_exchange.receive_scattered

    def spy(connected, targets, remaining_s):
        numbers.extend(targets)
        receive(connected, targets, remaining_s)

    monkeypatch.setattr(peer_exchange, "receive_scattered", spy)
    return numbers


@pytest.mark.parametrize("size", [BLOCK_BYTES, LARGE_BYTES, 3 * LARGE_BYTES])
async def test_blocks_of_a_near_peer_come_through_its_memory(path, streamed, size):
    async with open_store(ram(24, size)) as memory, serving([memory], f"unix:{path}", size) as server:
        await memory.put_many(offers(range(0, 24, 2), size))
        async with reading(block_bytes=size) as store:
            for _ in range(3):
                store.expect([key(number) for number in range(24)], source(server.address))
                assert await read(store, range(24), size) == [*range(0, 24, 2)]
            assert not store.witness.failures
        assert not streamed


@pytest.mark.parametrize("reason", ["another host", "not allowed"])
async def test_memory_that_cannot_be_mapped_is_sent(path, streamed, reason, monkeypatch):
    tried = []
    if reason == "another host":
        elsewhere = HostIdentity(machine_id="a", boot_id="b", pid_namespace="c")
        monkeypatch.setattr(peer_exchange, "host_identity", lambda: elsewhere)
    else:
        monkeypatch.setattr(Mappings, "map", lambda mappings, region: tried.append(region))
    async with open_store(ram()) as memory, serving([memory], f"unix:{path}") as server:
        await memory.put_many(offers(range(8)))
        async with reading() as store:
            for turn in range(1, 4):
                store.expect([key(number) for number in range(8)], source(server.address))
                assert await read(store, range(8)) == [*range(8)]
                assert len(streamed) == 8 * turn
            assert not store.witness.failures
    assert len(tried) == (reason == "not allowed")  # once


async def test_a_worker_elsewhere_is_not_asked_for_its_memory(streamed):
    async with open_store(ram()) as memory, serving([memory]) as server, reading() as store:
        await memory.put_many(offers([1]))
        store.expect([key(1)], source(server.address))
        assert await read(store, [1]) == [1]
        assert len(streamed) == 1


@pytest.mark.parametrize(
    ("damage", "found", "kind"),
    [
        ("none", [1, 2], None),
        ("another reader's blocks", [2], Kind.CORRUPT),
        ("beyond the end", [], Kind.IO),
        ("before the beginning", [], Kind.IO),
        ("another file", [1, 2], None),
    ],
)
async def test_memory_that_is_not_as_it_should_be_is_not_believed(path, damage, found, kind):
    shared = SharedMemory("test-peer", 4 * BLOCK_BYTES)
    region, offset = describe_region(shared.region), BLOCK_BYTES
    blocks = [block(1), block(2)]
    shared.memory[offset : offset + 2 * BLOCK_BYTES] = b"".join(blocks)
    checksums = b"".join(block_checksum(key(n), memoryview(block(n))) for n in (1, 2))
    if damage == "another reader's blocks":
        shared.memory[offset : offset + BLOCK_BYTES] = block(7)
    if damage == "beyond the end":
        offset = 3 * BLOCK_BYTES
    if damage == "before the beginning":
        offset = -BLOCK_BYTES

    async def answer(writer):
        if damage == "another file" and peer.num_asks == 1:  # then it is asked for bytes
            lost = type(region)(
                pid=region.pid, fd=region.fd, size_bytes=region.size_bytes, inode=region.inode + 1
            )
            writer.write(frame(Piece(b"\1\1", checksums, lost, offset)))
        elif damage == "another file":
            writer.write(frame(Piece(b"\1\1", checksums)) + b"".join(blocks))
        else:
            writer.write(frame(Piece(b"\1\1", checksums, region, offset)))

    async with fake_peer(answer, ends=False, path=path) as peer, reading() as store:
        store.expect([key(1), key(2)], source(peer.address))
        assert await read(store, [1, 2]) == found
        assert [failure.kind for failure in store.witness.failures] == ([kind] if kind else [])
    shared.close()


async def test_a_peer_that_insists_on_memory_that_is_not_there_is_a_miss(path):
    shared = SharedMemory("test-peer", 4 * BLOCK_BYTES)
    region = describe_region(shared.region)
    shared.close()

    async def answer(writer):
        writer.write(frame(Piece(b"\1", bytes(16), region)))

    async with fake_peer(answer, ends=False, path=path) as peer, reading() as store:
        for turn in range(4):
            store.expect([key(1)], source(peer.address))
            assert await store.count_prefix([key(1)]) == (turn < 3)
            assert await read(store, [1]) == []
        assert {failure.kind for failure in store.witness.failures} == {Kind.IO}


@pytest.mark.parametrize("reason", ["it died", "long ago"])
async def test_the_memory_of_a_peer_is_let_go(tmp_path, reason):
    async with open_store(ram()) as memory, reading() as store:
        await memory.put_many(offers([1]))
        async with serving([memory], f"unix:{tmp_path / 'one'}") as server:
            store.expect([key(1)], source(server.address))
            assert await read(store, [1]) == [1]
            assert num_outboxes() == 2  # the server's own, and ours
        gc.collect()
        assert num_outboxes() == 1
        if reason == "it died":
            store.expect([key(1)], source(server.address))
            assert await read(store, [1]) == []
        else:
            async with serving([memory], f"unix:{tmp_path / 'two'}") as other:
                store.clock.now_s += FORGET_S + 1
                store.expect([key(1)], source(other.address))
                assert await read(store, [1]) == [1]
                assert num_outboxes() == 2
                await store.close()
        gc.collect()
        assert num_outboxes() == 0


def num_outboxes():
    return Path("/proc/self/maps").read_text().count("kv-peer-outbox")


@pytest.mark.parametrize("behaviour", ["takes nothing", "says something else", "hangs up"])
async def test_a_reader_that_does_not_take_its_pieces_is_left(path, behaviour):
    """And what it had is another one's then: its checksums say so."""
    size = LARGE_BYTES
    async with open_store(ram(16, size)) as memory:
        await memory.put_many(offers(range(16), size))
        async with serving(
            [memory], f"unix:{path}", size, piece_s=0.2, max_concurrent=1, max_waiting=2
        ) as server:
            reader, writer = await greeted(server.address)
            keys = [key(number) for number in range(8)]
            writer.write(frame(Ask(size, keys, host_identity())))
            piece = decode_answer(await next_frame(reader))
            mapped = map_region(piece.region)
            assert bytes(mapped[piece.offset : piece.offset + size]) == block(0, size)
            if behaviour == "says something else":
                writer.write(b"?" * len(TAKEN))
            if behaviour == "hangs up":
                writer.close()
            with anyio.fail_after(20):
                while server.statistics().num_connections:
                    await anyio.lowlevel.checkpoint()
            async with reading(block_bytes=size) as store:
                store.expect([key(number) for number in range(8, 16)], source(server.address))
                assert await read(store, range(8, 16), size) == [*range(8, 16)]
            now = mapped[piece.offset : piece.offset + size]
            assert block_checksum(key(0), now) != piece.checksums
            with contextlib.suppress(ConnectionError):
                writer.close()
                await writer.wait_closed()


async def next_frame(reader):
    head = await reader.readexactly(4)
    return await reader.readexactly(int.from_bytes(head, "little"))
