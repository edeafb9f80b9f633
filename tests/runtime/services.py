"""A service to call, and what it takes to call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from pydantic import BaseModel

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.graph import endpoint, endpoints_of, service
from dynamo_sdk.runtime.calls import codecs_of, serve_endpoints
from dynamo_sdk.runtime.clock import Clock, SystemClock
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.edges import Edge, ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.network import Network
from dynamo_sdk.runtime.server import Server
from dynamo_sdk.types import WorkerId, WorkerRecord


class Point(msgspec.Struct):
    x: int
    y: int


class Order(BaseModel):
    item: str
    count: int = 1


@service
class Workshop:
    """Everything an endpoint may be."""

    def __init__(self) -> None:
        self.num_mirrored = 0
        self.num_produced = 0
        self.num_closed = 0
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    @endpoint
    async def mirrored(self, point: Point, *, factor: int = 1) -> Point:
        self.num_mirrored += 1
        return Point(point.y * factor, point.x * factor)

    @endpoint
    async def doubled(self, order: Order) -> Order:
        return Order(item=order.item, count=2 * order.count)

    @endpoint
    async def count(self, until: int) -> AsyncIterator[int]:
        self.started.set()
        try:
            for number in range(until):
                self.num_produced += 1
                yield number
        finally:
            self.num_closed += 1
            self.closed.set()

    @endpoint
    async def never(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    @endpoint
    async def refuse(self) -> str:
        raise InvalidRequest("no such thing", param="thing")

    @endpoint
    async def break_down(self) -> str:
        raise ZeroDivisionError("a bug")


@dataclass(slots=True)
class Rig:
    """One workshop behind a server, and a client of it."""

    workshop: Workshop
    server: Server
    client: ServiceClient
    edge: Workshop
    fleet: FleetView


@asynccontextmanager
async def rig(
    network: Network,
    address: str,
    *,
    clock: Clock | None = None,
    secret: str | None = None,
    client_secret: str | None = None,
) -> AsyncIterator[Rig]:
    clock = clock or SystemClock()
    workshop = Workshop()
    handler = serve_endpoints(workshop, codecs_of(endpoints_of(Workshop), "Workshop"))
    server = Server(network, handler, secret=secret, clock=clock)
    await server.start(address)
    discovery = MemoryDiscovery(clock=clock)
    await discovery.register(record_of(server, "w0"))
    fleet = FleetView(discovery)
    await fleet.start()
    client = ServiceClient("Workshop", Workshop, fleet, network, clock, client_secret or secret)
    try:
        yield Rig(workshop, server, client, Edge(client), fleet)  # type: ignore[arg-type]
    finally:
        await client.close()
        await fleet.close()
        await discovery.close()
        await server.close()


def record_of(server: Server, worker_id: str) -> WorkerRecord:
    return WorkerRecord(worker_id=WorkerId(worker_id), service="Workshop", replica=0, address=server.address)
