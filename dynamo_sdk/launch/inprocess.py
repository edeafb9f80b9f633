"""``InProcessLauncher``: a whole graph in one process and on one event loop, for notebooks and tests.

Replicas are tasks; they talk over a ``MemoryNetwork`` and find each other in a ``MemoryDiscovery``. Only
the frontend opens a socket. Nothing is restarted: what fails here, fails the graph.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar, cast

import anyio
import anyio.abc

from dynamo_sdk.errors import DynamoError, GraphError, LaunchError
from dynamo_sdk.graph import Graph
from dynamo_sdk.interfaces import Fleet, Launcher, LaunchOptions
from dynamo_sdk.runtime.clock import Clock, SystemClock
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.edges import Edge, ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.memory import MemoryNetwork
from dynamo_sdk.runtime.network import Network
from dynamo_sdk.runtime.replica import ReplicaSpec, run_replica
from dynamo_sdk.runtime.target import load_graph
from dynamo_sdk.types import WorkerId
from dynamo_sdk.types.plan import DeploymentPlan, Inventory, ReplicaPlan, ServicePlan

from .exits import innermost
from .gpus import local_inventory
from .listening import http_socket_of, idle_frontends, url_of
from .preflight import check_one_process
from .scaling import scaled

S = TypeVar("S")


@dataclass(slots=True, kw_only=True)
class _RunningReplica:
    service: str
    index: int
    worker_id: WorkerId
    stop: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def name(self) -> str:
        return f"{self.service}.{self.index}"


class InProcessLauncher(Launcher):
    """See ``Launcher``. ``url`` and ``client`` are for the code beside the graph.

    ``graph`` saves loading it from ``plan.target``; ``network`` and ``clock`` may be twins that fail and
    wait on command. Errors of a replica are raised as they are: there is no log to look into.
    """

    @classmethod
    def inventory(cls) -> Inventory:
        return local_inventory()

    def __init__(
        self,
        plan: DeploymentPlan,
        options: LaunchOptions,
        *,
        graph: Graph | None = None,
        network: Network | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_one_process(plan, options)
        self.plan = plan
        self.url: str | None = None
        self.network = network or MemoryNetwork()
        self._graph = graph or load_graph(plan.target)
        self._options = options
        self._clock = clock or SystemClock()
        self._inventory = self.inventory()
        self._replicas: list[_RunningReplica] = []
        self._error: BaseException | None = None
        self._changed = anyio.Event()
        self._scaling = anyio.Lock()
        self._addresses = itertools.count(1)
        self._http: socket.socket | None = None
        self._clients: dict[str, ServiceClient] = {}
        self._stack = AsyncExitStack()

    @classmethod
    @asynccontextmanager
    async def app(
        cls, graph: Graph, *, deploy: str = "", overrides: Iterable[str] = (), port: int = 0
    ) -> AsyncIterator[Self]:
        """Compile ``graph``, start it, wait until it is ready; drain it at the end.

        ``deploy`` is the text of a deploy file. Raises ``DynamoError``.
        """
        from dynamo_sdk.graph.compile import compile_plan
        from dynamo_sdk.graph.deploy import parse_deploy
        from dynamo_sdk.plugins import Registry

        plan = compile_plan(
            graph,
            target="graph.local()",
            registry=Registry.discover().including(*graph.modules()),
            inventory=cls.inventory(),
            deploy=parse_deploy(deploy, overrides=overrides),
        )
        async with cls(plan, LaunchOptions(port=port), graph=graph) as launcher:
            await launcher.wait_ready()
            yield launcher
            await launcher.drain()

    def client(self, service: type[S]) -> S:
        """What ``depends(service)`` gives to a service: its endpoints, answered by any replica."""
        name = service.__name__
        try:
            is_ours = self._graph.service(name) is service
        except GraphError:
            is_ours = False
        if not is_ours:
            known = ", ".join(each.name for each in self.plan.services)
            raise GraphError(f"{name} is no service of this graph (services: {known})")
        if name not in self._clients:
            self._clients[name] = ServiceClient(name, service, self._fleet, self.network, self._clock, None)
        return cast(S, Edge(self._clients[name]))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._http = http_socket_of(self.plan.services, self._options)
            if self._http is not None:
                stack.callback(self._http.close)
                self.url = url_of(self._options.host, self._http)
            self._discovery = MemoryDiscovery(clock=self._clock)
            stack.push_async_callback(self._discovery.close)
            self._fleet = FleetView(self._discovery)
            await self._fleet.start()
            stack.push_async_callback(self._fleet.close)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.push_async_callback(self._close_clients)
            stack.push_async_exit(self._cancel_everything)
            self._fleet.subscribe(self._on_fleet)
            for service in self.plan.services:
                for replica in service.replicas:
                    self._start_replica(service, replica)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            await self._stack.aclose()  # the caller's error is no failure of our tasks: keep it unwrapped
        else:
            await self._stack.__aexit__(kind, error, trace)

    async def wait_ready(self) -> str | None:
        with anyio.move_on_after(self._options.ready_timeout_s) as scope:
            await self._wait_until(lambda: not self._late())
        if scope.cancelled_caught:
            raise LaunchError(
                f"not ready after {self._options.ready_timeout_s:.0f} s: {', '.join(self._late())}"
            )
        return None if idle_frontends(self.plan.services) is not None else self.url

    async def wait_failed(self) -> None:
        await self._wait_until(lambda: False)

    async def scale_to(self, service: str, num_replicas: int) -> None:
        async with self._scaling:
            plan = scaled(self.plan, service, num_replicas, self._inventory)
            present = [replica for replica in self._replicas if replica.service == service]
            surplus = [replica for replica in present if replica.index >= num_replicas]
            await self._stop(surplus)
            self._replicas = [replica for replica in self._replicas if replica not in surplus]
            self.plan = plan
            for replica in plan.service(service).replicas[len(present) :]:
                self._start_replica(plan.service(service), replica)

    async def drain(self) -> None:
        with anyio.move_on_after(self._options.drain_timeout_s):
            for service in reversed(self.plan.services):
                await self._stop([replica for replica in self._replicas if replica.service == service.name])

    # -- inside

    def _start_replica(self, service: ServicePlan, replica: ReplicaPlan) -> None:
        name = f"{service.name}.{replica.index}"
        running = _RunningReplica(
            service=service.name,
            index=replica.index,
            worker_id=WorkerId(f"{name}-{secrets.token_hex(4)}"),
        )
        self._replicas.append(running)
        self._tasks.start_soon(self._run, running, service.is_frontend, name=name)

    async def _run(self, replica: _RunningReplica, is_frontend: bool) -> None:
        spec = ReplicaSpec(
            plan=self.plan,
            service=replica.service,
            replica=replica.index,
            worker_id=replica.worker_id,
            registry="memory",
            listen=f"memory:{next(self._addresses)}",
            http_fd=os.dup(self._http.fileno()) if is_frontend and self._http is not None else None,
            drain_timeout_s=self._options.drain_timeout_s,
        )
        try:
            with replica.scope:
                await run_replica(
                    spec,
                    replica.stop,
                    graph=self._graph,
                    network=self.network,
                    discovery=self._discovery,
                    clock=self._clock,
                )
        except Exception as error:
            self._error = self._error or _named(replica, innermost(error))
        finally:
            replica.ended.set()
            self._notify()

    async def _stop(self, replicas: list[_RunningReplica]) -> None:
        for replica in replicas:
            replica.stop.set()
        for replica in replicas:
            await replica.ended.wait()

    def _on_fleet(self, fleet: Fleet) -> None:
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _late(self) -> list[str]:
        ready = {record.worker_id for record in self._fleet.workers.values() if record.is_ready}
        return [replica.name for replica in self._replicas if replica.worker_id not in ready]

    async def _wait_until(self, is_met: Callable[[], bool]) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if is_met():
                return
            await self._changed.wait()

    async def _close_clients(self) -> None:
        with anyio.CancelScope(shield=True):
            for client in self._clients.values():
                await client.close()

    async def _cancel_everything(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            for replica in self._replicas:
                replica.scope.cancel()
            for replica in self._replicas:
                await replica.ended.wait()


def _named(replica: _RunningReplica, error: BaseException) -> BaseException:
    """The error, saying whose it is; a stranger becomes a ``LaunchError``."""
    if isinstance(error, DynamoError):
        return type(error)(f"{replica.name}: {error}", param=error.param)
    wrapped = LaunchError(f"{replica.name} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
