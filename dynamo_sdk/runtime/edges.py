"""What ``depends`` becomes in a running graph: a client that looks like the service.

``self.summarizer.summarize(text)`` goes to one replica of that service, chosen round-robin among those
that are there; ``edge_client(self.summarizer)`` gives the client itself, for code that chooses replicas.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Any

from dynamo_sdk.errors import ConnectionLost, HandshakeError, Unavailable, WireError
from dynamo_sdk.graph.endpoints import endpoints_of
from dynamo_sdk.types import WorkerId, WorkerRecord

from .calls import EndpointCodec, RemoteStream, call_unary, codecs_of, ping
from .client import ClientConnection, ClientStream, connect
from .clock import Clock
from .fleet import FleetView
from .network import Network

UNARY_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 3600.0
"""Limits for calls without a deadline of their own; calls made inside another call inherit its deadline."""


class ServiceClient:
    """Calls endpoints of the replicas of one service. One connection per replica, made when first needed."""

    def __init__(
        self, service: str, cls: type, fleet: FleetView, network: Network, clock: Clock, secret: str | None
    ) -> None:
        self.service = service
        self.cls = cls
        self._fleet = fleet
        self._network = network
        self._clock = clock
        self._secret = secret
        self._codecs = codecs_of(endpoints_of(cls), service)
        self._connections: dict[WorkerId, asyncio.Task[ClientConnection]] = {}
        self._turn = itertools.count()
        fleet.subscribe(self._forget_gone)

    def replicas(self) -> list[WorkerRecord]:
        """Those that are there now, ready or not."""
        return self._fleet.of_service(self.service)

    async def call(
        self, worker_id: WorkerId, endpoint: str, *args: object, timeout_s: float | None = UNARY_TIMEOUT_S
    ) -> Any:
        """One unary call to one replica."""
        codec = self._codecs[endpoint]
        connection = await self.connection(worker_id)
        return await call_unary(connection, codec, codec.encode_arguments(args, {}), timeout_s=timeout_s)

    def stream(
        self, worker_id: WorkerId, endpoint: str, *args: object, timeout_s: float | None = STREAM_TIMEOUT_S
    ) -> RemoteStream:
        """One streaming call to one replica."""
        codec = self._codecs[endpoint]
        payload = codec.encode_arguments(args, {})

        async def opening() -> ClientStream:
            return (await self.connection(worker_id)).open(endpoint, payload, timeout_s=timeout_s)

        return RemoteStream(codec, opening)

    async def ping(self, worker_id: WorkerId, *, timeout_s: float = 10.0) -> None:
        await ping(await self.connection(worker_id), timeout_s=timeout_s)

    async def connection(self, worker_id: WorkerId) -> ClientConnection:
        """The connection to this replica. Raises ``ConnectionLost`` when it is gone."""
        current = self._connections.get(worker_id)
        if current is None or _is_lost(current):
            record = self._fleet.workers.get(worker_id)
            if record is None:
                raise ConnectionLost(f"{self.service}: worker {worker_id} is gone")
            current = self._connections[worker_id] = asyncio.get_running_loop().create_task(
                connect(self._network, record.address, secret=self._secret, clock=self._clock)
            )
        return await asyncio.shield(current)

    async def any_connection(self) -> ClientConnection:
        """A connection to the replica whose turn it is. Raises ``Unavailable`` when none answers."""
        replicas = sorted(self.replicas(), key=lambda record: record.worker_id)
        turn = next(self._turn)
        refusals: list[str] = []
        for offset in range(len(replicas)):
            record = replicas[(turn + offset) % len(replicas)]
            try:
                return await self.connection(record.worker_id)
            except HandshakeError:
                raise
            except WireError as error:
                refusals.append(str(error))
        raise Unavailable(f"no replica of {self.service} answers: {'; '.join(refusals) or 'none is running'}")

    async def close(self) -> None:
        connections, self._connections = self._connections, {}
        for task in connections.values():
            await _close_connection(task)

    def bound(self, codec: EndpointCodec) -> Callable[..., Any]:
        """The endpoint as a method that any replica answers."""
        if codec.spec.is_streaming:
            return functools.partial(self._stream_any, codec)
        return functools.partial(self._call_any, codec)

    @property
    def codecs(self) -> dict[str, EndpointCodec]:
        return self._codecs

    async def _call_any(self, codec: EndpointCodec, *args: object, **kwargs: object) -> Any:
        payload = codec.encode_arguments(args, kwargs)
        return await call_unary(await self.any_connection(), codec, payload, timeout_s=UNARY_TIMEOUT_S)

    def _stream_any(self, codec: EndpointCodec, *args: object, **kwargs: object) -> RemoteStream:
        payload = codec.encode_arguments(args, kwargs)

        async def opening() -> ClientStream:
            connection = await self.any_connection()
            return connection.open(codec.spec.name, payload, timeout_s=STREAM_TIMEOUT_S)

        return RemoteStream(codec, opening)

    def _forget_gone(self, fleet: dict[WorkerId, WorkerRecord]) -> None:
        """A record that vanished says the worker is dead or leaving; what still runs on it may end."""
        for worker_id in [w for w in self._connections if w not in fleet]:
            task = self._connections[worker_id]
            if _is_lost(task) or (task.done() and task.result().num_streams == 0):
                del self._connections[worker_id]
                if not _is_lost(task):
                    task.result().close_soon()


class Edge:
    """Stands in for the service behind ``depends``: its endpoints, and nothing else."""

    def __init__(self, client: ServiceClient) -> None:
        self.__client = client

    def __getattr__(self, name: str) -> Any:
        client = self.__client
        codec = client.codecs.get(name)
        if codec is None:
            known = ", ".join(client.codecs) or "none"
            raise AttributeError(f"{client.service} has no endpoint {name!r} (endpoints: {known})")
        method = client.bound(codec)
        self.__dict__[name] = method
        return method

    def __repr__(self) -> str:
        return f"<edge to {self.__client.service}>"


def edge_client(edge: object) -> ServiceClient:
    """The client behind a wired ``depends`` attribute. Raises ``TypeError`` for anything else."""
    if isinstance(edge, Edge):
        client = edge._Edge__client
        assert isinstance(client, ServiceClient)
        return client
    raise TypeError(f"{edge!r} is no edge of a running graph")


def _is_lost(task: asyncio.Task[ClientConnection]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None or not task.result().is_usable)


async def _close_connection(task: asyncio.Task[ClientConnection]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await task.result().aclose()
