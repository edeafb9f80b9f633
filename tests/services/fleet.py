"""A fleet of scripted workers in one process, behind real connections of the in-memory network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.graph import endpoint, endpoints_of, service
from dynamo_sdk.interfaces import Lease
from dynamo_sdk.runtime.calls import codecs_of, serve_endpoints
from dynamo_sdk.runtime.clock import ManualClock
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.memory import MemoryNetwork
from dynamo_sdk.runtime.server import Server
from dynamo_sdk.services.pools import Pools
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    LoadSnapshot,
    ModelRecord,
    Role,
    Usage,
    WorkerId,
    WorkerRecord,
)


def token_at(position: int) -> int:
    return 100 + position


@service
class Scripted:
    """Says ``token_at(position)``; stops where told to: hangs, fails, or lets a test look on."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.released: list[str] = []
        self.num_open = 0
        self.hang_after: int | None = None
        self.error: DynamoError | None = None
        self.hanging = asyncio.Event()

    @endpoint
    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        self.requests.append(request)
        self.num_open += 1
        try:
            if self.error is not None:
                raise self.error
            first, total = request.num_generated_tokens, request.sampling.max_tokens
            for position in range(first, total):
                if self.hang_after is not None and position >= self.hang_after:
                    self.hanging.set()
                    await asyncio.Event().wait()
                usage = Usage(request.num_prompt_tokens, position - first + 1)
                is_last = position == total - 1
                if request.role is Role.PREFILL and not is_last:
                    ticket = KVTransferParams(connector="fake", payload=b"t", ttl_s=30.0)
                    yield GenerateChunk((token_at(position),))
                    yield GenerateChunk(finish_reason=FinishReason.HANDOVER, usage=usage, kv_transfer=ticket)
                    return
                end = FinishReason.LENGTH if is_last else None
                yield GenerateChunk((token_at(position),), None, end, usage if is_last else None)
        finally:
            self.num_open -= 1

    @endpoint
    async def release(self, request_id: str) -> None:
        self.released.append(request_id)

    @endpoint
    async def loads(self) -> AsyncIterator[LoadSnapshot]:
        yield LoadSnapshot(at_s=0.0, num_running=self.num_open)
        await asyncio.Event().wait()


@dataclass(slots=True)
class Fleet:
    """``async with``; then ``add`` workers. Everything waits on ``clock``."""

    clock: ManualClock = field(default_factory=ManualClock)
    network: MemoryNetwork = field(init=False)
    pools: Pools = field(init=False)
    workers: dict[str, Scripted] = field(default_factory=dict)
    _leases: dict[str, Lease] = field(default_factory=dict)
    _discovery: MemoryDiscovery = field(init=False)
    _view: FleetView = field(init=False)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        self.network = MemoryNetwork(clock=self.clock)
        self._discovery = MemoryDiscovery(clock=self.clock)
        self._view = view = FleetView(self._discovery)
        await view.start()
        self._stack.push_async_callback(view.close)
        clients = {
            role.value: ServiceClient(role.value, Scripted, view, self.network, self.clock, None)
            for role in Role
        }
        for client in clients.values():
            self._stack.push_async_callback(client.close)
        self.pools = Pools(view, clients, self.clock)
        self._stack.push_async_callback(self.pools.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def view(self) -> FleetView:
        return self._view

    async def add(
        self,
        name: str,
        role: Role,
        *,
        models: Sequence[str] = ("m",),
        block_size: int | None = None,
        kv_address: str | None = None,
    ) -> Scripted:
        worker = self.workers[name] = Scripted()
        handler = serve_endpoints(worker, codecs_of(endpoints_of(Scripted), role.value))
        server = Server(self.network, handler, clock=self.clock)
        await server.start(f"memory:{name}")
        self._stack.push_async_callback(server.close)
        self._leases[name] = await self._discovery.register(
            WorkerRecord(
                worker_id=WorkerId(name),
                service=role.value,
                replica=0,
                address=server.address,
                is_ready=True,
                role=role,
                models=tuple(
                    ModelRecord(name=model, path="/", context_length=1000, block_size=block_size)
                    for model in models
                ),
                kv_address=kv_address,
            )
        )
        await self._view.wait_until(lambda workers: WorkerId(name) in workers)
        return worker

    async def kill(self, name: str) -> None:
        """The worker's process dies: its links break, then its record goes."""
        self.network.cut(f"memory:{name}")
        await self._leases.pop(name).revoke()
