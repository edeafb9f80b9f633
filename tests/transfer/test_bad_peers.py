"""Strangers, liars and sleepers on either end of the wire: typed errors in bounded time, no leak."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import msgspec
import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.transfer import BlockFetcher, BlockServer, HostIdentity, wire
from dynamo_sdk.transfer.ticket import decode_ticket, encode_ticket

from .conftest import LAYOUT, content, fill, host_memory, pattern

pytestmark = pytest.mark.anyio

ELSEWHERE = HostIdentity(machine_id="another", boot_id="another", pid_namespace="another")


@pytest.fixture
async def server():
    server = BlockServer(handshake_s=10)
    await server.start(["tcp:127.0.0.1:0"])
    yield server
    await server.close()


@contextlib.asynccontextmanager
async def stranger(server: BlockServer):
    host, port = server.addresses[0].removeprefix("tcp:").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):  # the server may have been faster
            await writer.wait_closed()


async def read_message(reader: asyncio.StreamReader) -> wire.FromServer:
    head = await reader.readexactly(wire.HEAD_BYTES)
    return wire.decode_from_server(await reader.readexactly(wire.body_bytes(head)))


async def introduced(reader, writer) -> None:
    greeting = await read_message(reader)
    assert isinstance(greeting, wire.Greeting)
    writer.write(wire.frame(wire.introduce(greeting, None)))
    assert isinstance(await read_message(reader), wire.Welcome)


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 5) + b"\xff" * 5,
        struct.pack("<I", 0),
        struct.pack("<I", 0xFFFFFFFF),
        wire.frame(wire.Done()),
        wire.frame(wire.Claim(b"x", [0])),
    ],
)
@pytest.mark.parametrize("is_introduced", [False, True])
async def test_nonsense_ends_the_connection_and_nothing_else(server, memories, data, is_introduced) -> None:
    async with stranger(server) as (reader, writer):
        if is_introduced:
            await introduced(reader, writer)
        else:
            await read_message(reader)
        writer.write(data)
        if is_introduced and data == wire.frame(wire.Claim(b"x", [0])):
            refused = await read_message(reader)
            assert isinstance(refused, wire.Refused)
            assert refused.code == "ticket_unknown"
        else:
            assert await closed(reader)
    own = host_memory(memories, 1)
    fetcher = BlockFetcher()
    params = server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=lambda: None)
    await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
    await fetcher.close()


@pytest.mark.parametrize("indexes", [[-1], [1], [0, 7]])
async def test_a_claim_beyond_the_ticket_gets_no_bytes(server, memories, indexes) -> None:
    released = asyncio.Event()
    params = server.issue("r", [3], host_memory(memories, 8), ttl_s=60, release=released.set)
    async with stranger(server) as (reader, writer):
        await introduced(reader, writer)
        writer.write(wire.frame(wire.Claim(decode_ticket(params).ticket_id, indexes)))
        assert await closed(reader)
    assert released.is_set()


async def test_a_reader_that_leaves_frees_the_blocks(server, memories) -> None:
    released = asyncio.Event()
    params = server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=released.set)
    async with stranger(server) as (reader, writer):
        await introduced(reader, writer)
        writer.write(wire.frame(wire.Claim(decode_ticket(params).ticket_id, [])))
        assert isinstance(await read_message(reader), wire.Claimed)
        assert not released.is_set()
    await asyncio.wait_for(released.wait(), 10)


async def test_two_claims_for_one_ticket(server, memories) -> None:
    params = server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=lambda: None)
    claim = wire.frame(wire.Claim(decode_ticket(params).ticket_id, []))
    async with stranger(server) as (reader, writer), stranger(server) as (second_reader, second_writer):
        await introduced(reader, writer)
        await introduced(second_reader, second_writer)
        writer.write(claim)
        assert isinstance(await read_message(reader), wire.Claimed)
        second_writer.write(claim)
        refused = await read_message(second_reader)
        assert isinstance(refused, wire.Refused)
        assert "being fetched" in refused.message
        writer.write(wire.frame(wire.Done()))
        assert isinstance(await read_message(reader), wire.Released)


async def test_a_silent_stranger_is_shown_out() -> None:
    server = BlockServer(handshake_s=0.02)
    await server.start(["tcp:127.0.0.1:0"])
    async with stranger(server) as (reader, _):
        await read_message(reader)
        assert await closed(reader)
    await server.close()


async def test_connections_are_bounded() -> None:
    server = BlockServer(max_connections=1)
    await server.start(["tcp:127.0.0.1:0"])
    async with stranger(server) as (reader, _):
        await read_message(reader)
        async with stranger(server) as (turned_away, _):
            assert await closed(turned_away)
    await server.close()


@pytest.mark.parametrize(
    ("of_server", "of_fetcher"), [(b"one", b"two"), (b"one", None), (None, b"two")], ids=str
)
async def test_secrets_must_agree_on_tcp(memories, of_server, of_fetcher) -> None:
    server = BlockServer(secret=of_server)
    await server.start(["tcp:127.0.0.1:0"])
    fetcher = BlockFetcher(secret=of_fetcher)
    params = server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=lambda: None)
    with pytest.raises(TransferError, match="secret"):
        await fetcher.fetch(params, [(0, 0)], host_memory(memories, 1), timeout_s=10)
    assert fetcher.statistics().num_peers == 0
    await fetcher.close()
    await server.close()


@pytest.mark.parametrize("address", ["unix:{}/s", "tcp:127.0.0.1:0"])
async def test_the_right_secret_opens_tcp_and_a_socket_file_needs_none(tmp_path, memories, address) -> None:
    server = BlockServer(secret=b"one")
    await server.start([address.format(tmp_path)])
    fetcher = BlockFetcher(secret=b"one")
    params = server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=lambda: None)
    await fetcher.fetch(params, [(0, 0)], host_memory(memories, 1), timeout_s=10)
    await fetcher.close()
    await server.close()


GREETING = wire.frame(wire.greet(None))
WELCOME = wire.frame(wire.Welcome())
CLAIMED = wire.frame(wire.Claimed())


@pytest.mark.parametrize(
    "speech",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack("<I", 0xFFFFFFFF),
        wire.frame(wire.Released()),
        GREETING,
        GREETING + wire.frame(wire.Claimed()),
        GREETING + WELCOME,
        GREETING + WELCOME + wire.frame(wire.Refused("user_error", "surprise")),
        GREETING + WELCOME + wire.frame(wire.Refused("no_such_code", "surprise")),
        GREETING + WELCOME + CLAIMED + bytes(100),
        GREETING + WELCOME + CLAIMED + bytes(LAYOUT.block_bytes),
        GREETING + WELCOME + CLAIMED + bytes(LAYOUT.block_bytes) + CLAIMED,
    ],
)
@pytest.mark.parametrize("hangs", [False, True])
async def test_a_false_server_is_a_transfer_error(server, memories, speech, hangs) -> None:
    async def false_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(speech)
        with contextlib.suppress(OSError):  # the fetcher may be gone already
            if not hangs:
                writer.write_eof()
            await reader.read()  # until the fetcher leaves
        writer.close()

    liar = await asyncio.start_server(false_server, "127.0.0.1", 0)
    port = liar.sockets[0].getsockname()[1]
    ticket = decode_ticket(server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=lambda: None))
    params = encode_ticket(msgspec.structs.replace(ticket, addresses=(f"tcp:127.0.0.1:{port}",)), ttl_s=60)
    fetcher = BlockFetcher(host=ELSEWHERE)
    with pytest.raises(TransferError):
        await fetcher.fetch(params, [(0, 0)], host_memory(memories, 1), timeout_s=0.1 if hangs else 10)
    assert fetcher.statistics().num_peers == 0
    await fetcher.close()
    liar.close()
    await liar.wait_closed()


async def test_a_connect_without_an_answer_can_be_cancelled(server, memories) -> None:
    """A full backlog swallows the handshake of further connections."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first = socket.create_connection(full.getsockname())
        ticket = decode_ticket(
            server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=lambda: None)
        )
        addresses = (f"tcp:127.0.0.1:{full.getsockname()[1]}",)
        params = encode_ticket(msgspec.structs.replace(ticket, addresses=addresses), ttl_s=60)
        fetcher = BlockFetcher()
        memory = host_memory(memories, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await fetcher.fetch(params, [(0, 0)], memory, timeout_s=600)
        first.close()
        await fetcher.close()


async def test_memory_that_cannot_be_mapped_is_streamed_and_said_once(server, memories, caplog) -> None:
    source, own = host_memory(memories, 4), host_memory(memories, 4)
    fill(source, 4)
    fetcher = BlockFetcher()
    for number in range(3):
        ticket = decode_ticket(server.issue(f"r{number}", [number], source, ttl_s=60, release=lambda: None))
        assert ticket.region is not None
        other = msgspec.structs.replace(ticket.region, inode=ticket.region.inode + 1)
        params = encode_ticket(msgspec.structs.replace(ticket, region=other), ttl_s=60)
        report = await fetcher.fetch(params, [(0, number)], own, timeout_s=10)
        assert report.back_end == "tcp"
        assert content(own, number) == pattern(number, LAYOUT.block_bytes)
    await fetcher.close()
    said = [record for record in caplog.records if "cannot map" in record.message]
    assert len(said) == 1
    assert "not the memory of the ticket" in said[0].message
