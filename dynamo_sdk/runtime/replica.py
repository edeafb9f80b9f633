"""One replica of one service, from its spec to its end.

load the class -> wire its edges -> start it -> listen -> announce -> check the edges -> ready
... stop is set ... -> withdraw -> drain -> close
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec

from dynamo_sdk.errors import ConfigError, DynamoError, WireError
from dynamo_sdk.graph import Graph
from dynamo_sdk.graph.endpoints import endpoints_of
from dynamo_sdk.interfaces import Discovery
from dynamo_sdk.plugins.registry import Registry
from dynamo_sdk.types import WorkerId, WorkerRecord
from dynamo_sdk.types.plan import DeploymentPlan, ServicePlan

from .calls import codecs_of, serve_endpoints
from .clock import Clock, SystemClock
from .discovery import EmbeddedDiscovery
from .edges import Edge, ServiceClient
from .fleet import FleetView
from .http_socket import open_http_socket
from .network import Network, SocketNetwork
from .server import Server
from .service import ManagedService, ServiceContext
from .target import load_graph

logger = logging.getLogger(__name__)

EDGE_RETRY_S = 0.05
LAST_EDGE_RETRY_S = 1.0


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a process needs to be one replica. ``registry`` and ``listen`` are addresses. ``has_served``:
    an earlier process of this replica was ready."""

    plan: DeploymentPlan
    service: str
    replica: int
    worker_id: str
    registry: str
    listen: str
    secret: str | None = None
    http_fd: int | None = None
    drain_timeout_s: float = 30.0
    has_served: bool = False


async def run_replica(
    spec: ReplicaSpec,
    stop: anyio.Event,
    *,
    graph: Graph | None = None,
    network: Network | None = None,
    discovery: Discovery | None = None,
    clock: Clock | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Be this replica until ``stop`` is set, then drain and return.

    The keyword arguments replace what the spec names by what one process shares: the graph itself, an
    in-memory network and discovery, another clock; ``on_ready`` is called once. Raises ``DynamoError``.
    """
    network = network or SocketNetwork()
    clock = clock or SystemClock()
    service = spec.plan.service(spec.service)
    graph = graph or load_graph(spec.plan.target)
    cls = graph.service(spec.service)
    async with AsyncExitStack() as stack:
        if discovery is None:
            discovery = EmbeddedDiscovery(spec.registry, secret=spec.secret, network=network, clock=clock)
            stack.push_async_callback(discovery.close)
        fleet = FleetView(discovery)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        instance = _construct(cls, service)
        edges = await _wire_edges(instance, cls, service, stack, fleet, network, clock, spec.secret)
        peers = ServiceClient(spec.service, cls, fleet, network, clock, spec.secret)
        stack.push_async_callback(peers.close)
        context = ServiceContext(
            plan=spec.plan,
            service=service,
            record=WorkerRecord(
                worker_id=WorkerId(spec.worker_id),
                service=spec.service,
                replica=spec.replica,
                address=spec.listen,
                pid=os.getpid(),
            ),
            clock=clock,
            fleet=fleet,
            plugins=Registry.discover().including(*graph.modules()),
            edges=edges,
            peers=peers,
            http_fd=None if spec.http_fd is None else open_http_socket(spec.http_fd, spec.replica),
            secret=spec.secret,
            drain_timeout_s=spec.drain_timeout_s,
            has_served=spec.has_served,
        )
        handler = serve_endpoints(instance, codecs_of(endpoints_of(cls), spec.service))
        while_draining = (
            instance.endpoints_while_draining if isinstance(instance, ManagedService) else frozenset()
        )
        server = Server(network, handler, secret=spec.secret, clock=clock, while_draining=while_draining)
        stack.push_async_callback(server.close)
        async with _life(instance, context) as record:
            await server.start(spec.listen)
            await context.announcement.begin(
                msgspec.structs.replace(record, address=server.address), discovery
            )
            try:
                if await _ends_before(stop, lambda: _check_edges(instance, context)):
                    await context.announcement.change(is_ready=True)
                    on_ready()
                    if isinstance(instance, ManagedService):
                        await _ends_before(stop, instance.wait_failed)
                    await stop.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    with contextlib.suppress(WireError):
                        await context.announcement.end()
                    with anyio.move_on_after(spec.drain_timeout_s) as limit:
                        await _drain(instance, server)
                    if limit.cancelled_caught:
                        logger.warning("drain ran into its limit of %.0f s", spec.drain_timeout_s)
                    await server.close()


def _construct(cls: type, service: ServicePlan) -> object:
    try:
        return cls(**service.args)
    except TypeError as error:
        raise ConfigError(f"services.{service.name}.args do not fit {cls.__name__}(...): {error}") from error


async def _wire_edges(
    instance: object,
    cls: type,
    service: ServicePlan,
    stack: AsyncExitStack,
    fleet: FleetView,
    network: Network,
    clock: Clock,
    secret: str | None,
) -> dict[str, ServiceClient]:
    clients: dict[str, ServiceClient] = {}
    for edge in service.edges:
        target = getattr(cls, edge.attribute).target
        client = ServiceClient(edge.service, target, fleet, network, clock, secret)
        stack.push_async_callback(client.close)
        clients[edge.attribute] = client
        setattr(instance, edge.attribute, Edge(client))
    return clients


@asynccontextmanager
async def _life(instance: object, context: ServiceContext) -> AsyncIterator[WorkerRecord]:
    """Start the service, and close it whatever happens."""
    try:
        if isinstance(instance, ManagedService):
            yield await instance.start(context)
        else:
            if (on_start := getattr(instance, "on_start", None)) is not None:
                await on_start()
            yield context.record
    finally:
        with anyio.CancelScope(shield=True):
            if isinstance(instance, ManagedService):
                await instance.close()
            elif (on_stop := getattr(instance, "on_stop", None)) is not None:
                await on_stop()


async def _check_edges(instance: object, context: ServiceContext) -> None:
    """Return when every edge has answered."""
    for client in context.edges.values():
        await _wait_for_answer(client, context.clock)
    if isinstance(instance, ManagedService):
        await instance.check_edges()


async def _ends_before(stop: anyio.Event, work: Callable[[], Awaitable[None]]) -> bool:
    """Run ``work`` until ``stop`` is set; whether it came to its end. Raises what it raises."""
    has_ended = False

    async def run(scope: anyio.CancelScope) -> None:
        nonlocal has_ended
        await work()
        has_ended = True
        scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, tasks.cancel_scope)
            await stop.wait()
            tasks.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return has_ended and not stop.is_set()


async def _wait_for_answer(client: ServiceClient, clock: Clock) -> None:
    """Return when a ready replica of the service has answered a ping."""
    retry_s = EDGE_RETRY_S
    while True:
        for record in client.replicas():
            if record.is_ready:
                try:
                    await client.ping(record.worker_id)
                    return
                except DynamoError as error:
                    logger.warning("%s does not answer: %s", record.worker_id, error)
        await clock.sleep(retry_s)
        retry_s = min(2 * retry_s, LAST_EDGE_RETRY_S)


async def _drain(instance: object, server: Server) -> None:
    """Calls first: what they leave behind (a ticket, say) is what the service then waits for."""
    await server.drain()
    if isinstance(instance, ManagedService):
        await instance.drain()
