"""Workers that tell of KV blocks, and a frontend's index that follows them over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Self

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.graph import endpoint, endpoints_of, service
from dynamo_sdk.interfaces import Overlap, PublishesKVEvents
from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.runtime.calls import codecs_of, serve_endpoints
from dynamo_sdk.runtime.clock import Clock, ManualClock
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.memory import MemoryNetwork
from dynamo_sdk.runtime.network import Network
from dynamo_sdk.runtime.server import Server
from dynamo_sdk.services.kv_feed import KVFeed
from dynamo_sdk.services.kv_publisher import KVPublisher
from dynamo_sdk.types import (
    BlocksRemoved,
    BlocksStored,
    KVDigestBatch,
    KVEvent,
    KVEventBatch,
    WorkerId,
    WorkerRecord,
    pack_tokens,
)

BLOCK = 4
TOKENS = tuple(range(100, 140))


class Talker(PublishesKVEvents):
    """An engine that only talks: block ``i`` of ``TOKENS`` is named ``i``. Two ranks."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[KVEventBatch], None]] = []
        self.held: dict[int, list[int]] = {0: [], 1: []}
        self.numbers = {0: -1, 1: -1}

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self.listeners.append(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        return tuple(
            KVEventBatch(sequence=self.numbers[rank], dp_rank=rank, events=stored(*held))
            for rank, held in self.held.items()
        )

    def store(self, *blocks: int, rank: int = 0) -> None:
        self.held[rank] += blocks
        self.say(rank, *stored(*blocks))

    def remove(self, block: int, *, rank: int = 0) -> None:
        self.held[rank].remove(block)
        self.say(rank, BlocksRemoved(block_hashes=(block,)))

    def say(self, rank: int, *events: KVEvent) -> None:
        self.numbers[rank] += 1
        for listener in self.listeners:
            listener(KVEventBatch(sequence=self.numbers[rank], dp_rank=rank, events=events))


def stored(*blocks: int) -> tuple[BlocksStored, ...]:
    return tuple(
        BlocksStored(
            block_hashes=(block,),
            parent_hash=block - 1 if block else None,
            token_ids=TOKENS[block * BLOCK : (block + 1) * BLOCK],
            block_size=BLOCK,
        )
        for block in blocks
    )


@service
class Teller:
    """A worker's one endpoint that matters here."""

    def __init__(self, engine: PublishesKVEvents | None) -> None:
        self.publisher = None if engine is None else KVPublisher(engine)
        self.num_calls = 0
        self.drops = self.skips = False

    @endpoint
    async def kv_events(self, seen: dict[int, int]) -> AsyncIterator[KVDigestBatch]:
        self.num_calls += 1
        if self.publisher is None:
            raise InvalidRequest("no events here")
        async with aclosing(self.publisher.follow(seen)) as batches:
            async for batch in batches:
                if not self.drops:
                    yield batch
                if self.skips:
                    yield KVDigestBatch(sequence=batch.sequence + 2, dp_rank=batch.dp_rank, digests=())


@dataclass
class Line:
    """Workers, a frontend's index, and a feed between them."""

    network: Network
    clock: Clock
    index: PrefixIndex = field(default_factory=PrefixIndex)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        self.discovery = MemoryDiscovery(clock=self.clock)
        view = FleetView(self.discovery)
        await view.start()
        self.stack.push_async_callback(view.close)
        self.client = ServiceClient("Teller", Teller, view, self.network, self.clock, None)
        self.stack.push_async_callback(self.client.close)
        self.feed = KVFeed(self.index, self.clock)
        self.stack.push_async_callback(self.feed.close)
        self.view = view
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def add(self, worker: WorkerId, engine: PublishesKVEvents | None, address: str) -> Teller:
        teller = Teller(engine)
        handler = serve_endpoints(teller, codecs_of(endpoints_of(Teller), "Teller"))
        server = Server(self.network, handler, clock=self.clock)
        await server.start(address)
        self.stack.push_async_callback(server.close)
        record = WorkerRecord(
            worker_id=worker, service="Teller", replica=0, address=server.address, is_ready=True
        )
        await self.discovery.register(record)
        await self.view.wait_until(lambda workers: worker in workers)
        return teller

    def depth(self, num_blocks: int = 10) -> dict[int, Overlap]:
        return self.index.match(prefix_keys(pack_tokens(TOKENS[: num_blocks * BLOCK]), BLOCK))


def memory_line() -> Line:
    clock = ManualClock()
    return Line(MemoryNetwork(clock=clock), clock)
