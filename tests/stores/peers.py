"""Workers that read each other's tiers, and peers that misbehave."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.stores import PeerServer, PeerStore, PeerStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.transfer import wire
from dynamo_sdk.types import KVSource

from .conftest import BLOCK_BYTES, Witness, block, key

LARGE_BYTES = 1 << 20


def ram(num_blocks=64, block_bytes=BLOCK_BYTES):
    return RamStore(RamStoreConfig(block_bytes=block_bytes, capacity_bytes=num_blocks * block_bytes))


def offers(numbers, size=BLOCK_BYTES):
    return [BlockOffer(key(number), block(number, size)) for number in numbers]


def buffers(num, size=BLOCK_BYTES):
    return [memoryview(bytearray(size)) for _ in range(num)]


def source(address, num_blocks=100):
    return KVSource(worker_id="other", address=address, num_blocks=num_blocks)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@asynccontextmanager
async def open_store(store):
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def serving(stores, address="tcp:127.0.0.1:0", block_bytes=BLOCK_BYTES, **settings):
    server = PeerServer(stores, block_bytes, **settings)
    try:
        [server.address] = await server.start([address])
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def reading(secret=None, block_bytes=BLOCK_BYTES, timeout_s=30, **settings):
    """The time-out is that of a machine with much else to do."""
    clock = Clock()
    store = PeerStore(
        PeerStoreConfig(block_bytes=block_bytes, timeout_s=timeout_s, **settings), monotonic_s=clock
    )
    store.clock, store.witness = clock, Witness()
    store.listen(store.witness)
    store.trust(secret)
    async with open_store(store):
        yield store
    assert store.statistics().num_pending == 0


async def read(store, numbers, size=BLOCK_BYTES):
    """The numbers of the blocks that were found; asserts that they are right."""
    into = buffers(len(numbers), size)
    found = await store.get_into([key(number) for number in numbers], into)
    for number, is_found, memory in zip(numbers, found, into, strict=True):
        assert not is_found or memory == block(number, size)
    return [number for number, is_found in zip(numbers, found, strict=True) if is_found]


class FakePeer:
    """Shakes hands, then answers each ask as ``how`` says, after which the connection ends if ``ends``."""

    def __init__(self, how, ends=True):
        self.how = how
        self.ends = ends
        self.num_asks = 0
        self.tasks = set()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        try:
            await self.talk(reader, writer)
        finally:
            writer.close()

    async def talk(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            greeting = wire.greet(None)
            writer.write(wire.frame(greeting))
            introduction = wire.decode_from_fetcher(await self.frame(reader))
            writer.write(wire.frame(wire.welcome(greeting, introduction, None)))
            while True:
                await self.frame(reader)
                self.num_asks += 1
                await self.how(writer)
                await writer.drain()
                if self.ends:
                    break

    async def frame(self, reader):
        return await reader.readexactly(wire.body_bytes(await reader.readexactly(wire.HEAD_BYTES)))


@asynccontextmanager
async def fake_peer(how, ends=True, path=None):
    """``path``: of its unix socket, instead of TCP."""
    peer = FakePeer(how, ends)
    if path is None:
        server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
        peer.address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(peer.serve, path)
        peer.address = f"unix:{path}"
    try:
        yield peer
    finally:
        server.close()
        for task in peer.tasks:
            task.cancel()
        if peer.tasks:
            await asyncio.wait(peer.tasks)


async def greeted(address):
    kind, place = address.split(":", 1)
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(place)
    else:
        reader, writer = await asyncio.open_connection(*place.split(":"))
    peer = FakePeer(None)
    greeting = wire.decode_from_server(await peer.frame(reader))
    writer.write(wire.frame(wire.introduce(greeting, None)))
    assert isinstance(wire.decode_from_server(await peer.frame(reader)), wire.Welcome)
    return reader, writer
