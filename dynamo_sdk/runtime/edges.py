"""What ``depends`` becomes in a running graph: a client that looks like the service.

``self.summarizer.summarize(text)`` goes to one replica of that service, chosen round-robin among those
that are there; ``edge_client(self.summarizer)`` gives the client itself, for code that chooses replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynamo_sdk.graph.endpoints import endpoints_of
from dynamo_sdk.types import WorkerId, WorkerRecord

from .calls import CallListener, EndpointCodec, PushedCall, RemoteStream, call_unary, codecs_of, ping
from .client import ClientConnection, QueuedStream
from .clock import Clock
from .connections import Connections
from .deadline import earliest_deadline_s
from .fleet import FleetView
from .network import Network

UNARY_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 3600.0
"""Limits for calls without a deadline of their own; calls made inside another call inherit its deadline."""


class ServiceClient:
    """Calls endpoints of the replicas of one service. Time spent connecting counts against the deadline."""

    def __init__(
        self, service: str, cls: type, fleet: FleetView, network: Network, clock: Clock, secret: str | None
    ) -> None:
        self.service = service
        self.codecs = codecs_of(endpoints_of(cls), service)
        self._fleet = fleet
        self._clock = clock
        self.connections = Connections(service, fleet, network, clock, secret)

    def replicas(self) -> list[WorkerRecord]:
        """Those that are there now, ready or not."""
        return self._fleet.of_service(self.service)

    async def call(
        self, worker_id: WorkerId, endpoint: str, *args: object, timeout_s: float | None = UNARY_TIMEOUT_S
    ) -> Any:
        """One unary call to one replica."""
        codec = self.codecs[endpoint]
        return await self._call(codec, codec.encode_arguments(args, {}), worker_id, timeout_s)

    def stream(
        self, worker_id: WorkerId, endpoint: str, *args: object, timeout_s: float | None = STREAM_TIMEOUT_S
    ) -> RemoteStream:
        """One streaming call to one replica; it begins, and its time, with the first read."""
        codec = self.codecs[endpoint]
        return self._stream(codec, codec.encode_arguments(args, {}), worker_id, timeout_s)

    def push(
        self,
        worker_id: WorkerId,
        endpoint: str,
        *args: object,
        listener: CallListener,
        timeout_s: float | None = STREAM_TIMEOUT_S,
    ) -> PushedCall:
        """One streaming call to one replica that tells ``listener`` everything, never before this returns."""
        codec = self.codecs[endpoint]
        payload = codec.encode_arguments(args, {})
        call = PushedCall(codec, listener)
        connection = self.connections.ready(worker_id)
        if connection is not None:
            call.start(connection, payload, timeout_s=timeout_s)
            return call

        async def opening() -> None:
            connection, left_s = await self._connect(worker_id, timeout_s)
            call.start(connection, payload, timeout_s=left_s)

        call.start_later(opening)
        return call

    async def ping(self, worker_id: WorkerId, *, timeout_s: float = 10.0) -> None:
        connection, left_s = await self._connect(worker_id, timeout_s)
        await ping(connection, timeout_s=left_s)

    async def close(self) -> None:
        await self.connections.close()

    def bound(self, codec: EndpointCodec) -> Callable[..., Any]:
        """The endpoint as a method that any replica answers."""

        async def call(*args: object, **kwargs: object) -> Any:
            return await self._call(codec, codec.encode_arguments(args, kwargs), None, UNARY_TIMEOUT_S)

        def stream(*args: object, **kwargs: object) -> RemoteStream:
            return self._stream(codec, codec.encode_arguments(args, kwargs), None, STREAM_TIMEOUT_S)

        return stream if codec.spec.is_streaming else call

    async def _connect(
        self, worker_id: WorkerId | None, timeout_s: float | None
    ) -> tuple[ClientConnection, float | None]:
        """To this replica, or any; and the time that is left for the call."""
        deadline_s = earliest_deadline_s(timeout_s, self._clock.now_s())
        if worker_id is None:
            connection = await self.connections.to_any(deadline_s)
        else:
            connection = await self.connections.to(worker_id, deadline_s)
        return connection, None if deadline_s is None else deadline_s - self._clock.now_s()

    async def _call(
        self, codec: EndpointCodec, payload: bytes, worker_id: WorkerId | None, timeout_s: float | None
    ) -> Any:
        connection, left_s = await self._connect(worker_id, timeout_s)
        return await call_unary(connection, codec, payload, timeout_s=left_s)

    def _stream(
        self, codec: EndpointCodec, payload: bytes, worker_id: WorkerId | None, timeout_s: float | None
    ) -> RemoteStream:
        async def opening() -> QueuedStream:
            connection, left_s = await self._connect(worker_id, timeout_s)
            return connection.open(codec.spec.name, payload, timeout_s=left_s)

        return RemoteStream(codec, opening)


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
