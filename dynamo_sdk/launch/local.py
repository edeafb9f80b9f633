"""``LocalLauncher``: one supervised process per replica on this host.

::

    LocalLauncher ─ private folder: registry.sock, 1.sock, 2.sock, ...
      ├ registry     who is there; also on a loopback TCP port, for ``--join``
      ├ HTTP socket  bound here, inherited by the frontends: port 0 works, and the port outlives them
      └ ReplicaSlot ─ GuardedProcess ─ guardian.py ─ replica_main.py      (one line per replica)
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import msgspec

from dynamo_sdk.errors import LaunchError
from dynamo_sdk.interfaces import Discovery, Fleet, Launcher, LaunchOptions
from dynamo_sdk.runtime.discovery import EmbeddedDiscovery, MemoryDiscovery
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.network import is_loopback, parse_address
from dynamo_sdk.runtime.registry import RegistryServer
from dynamo_sdk.runtime.replica import ReplicaSpec
from dynamo_sdk.types import WorkerId
from dynamo_sdk.types.plan import DeploymentPlan, HostInventory, Inventory, ReplicaPlan, ServicePlan

from .environments import even_share, replica_environment
from .gpus import local_inventory
from .listening import http_socket_of, idle_frontends, join_listen_address, reachable, url_of
from .logs import LogPrinter
from .preflight import chosen_services
from .processes import GuardedProcess
from .restarts import RestartPolicy
from .scaling import scaled
from .slots import ReplicaSlot, SlotState, failure_of, last_words

MAX_SOCKET_FOLDER_BYTES = 80  # a Unix socket's path may have some 107; ours are /registry.sock at most
PROGRESS_INTERVAL_S = 10.0
GRAPH_LOST_S = 60.0
"""What joined a graph outlives it by so long: shorter interruptions of a network are not its end."""
LAUNCHER = "launcher"


class LocalLauncher(Launcher):
    """See ``Launcher``. Raises ``ConfigError`` instead of ``LaunchError`` where a replica says that what
    the user wrote is at fault."""

    restart_policy = RestartPolicy()

    @classmethod
    def inventory(cls) -> Inventory:
        return local_inventory()

    def __init__(self, plan: DeploymentPlan, options: LaunchOptions) -> None:
        self.plan = plan
        self._options = options
        self._inventory = self.inventory()
        self._services = chosen_services(plan, options)
        self._printer = LogPrinter()
        self._slots: list[ReplicaSlot] = []
        self._changed = anyio.Event()
        self._scaling = anyio.Lock()
        self._stack = AsyncExitStack()
        self._http: socket.socket | None = None
        self._num_sockets = 0
        self._is_graph_lost = False

    @property
    def join_address(self) -> str | None:
        """Where ``--join`` of another command finds this graph; None when we joined one ourselves."""
        return self._join_address

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self._printer.close)
            self._folder = _make_folder()
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._http = http_socket_of(self._services, self._options)
            if self._http is not None:
                stack.callback(self._http.close)
            self._fleet = FleetView(await self._enter_discovery(stack))
            await self._fleet.start()
            stack.push_async_callback(self._fleet.close)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.push_async_exit(self._kill_everything)
            self._fleet.subscribe(self._on_fleet)
            for service in self._services:
                for replica in service.replicas:
                    self._add_slot(service, replica)
            if (warning := idle_frontends(self._services)) is not None:
                self._say(warning)
            self._tasks.start_soon(self._tell_progress)
            if self._joined is not None:
                self._tasks.start_soon(self._watch_graph, self._joined)
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
            await self._wait_until(lambda: not self._waiting(), self._failed_slots)
        if scope.cancelled_caught:
            waiting = self._waiting()
            raise LaunchError(
                f"not ready after {self._options.ready_timeout_s:.0f} s: "
                f"{', '.join(slot.name for slot in waiting)}" + last_words(waiting)
            )
        if self._http is None or idle_frontends(self.plan.services) is not None:
            return None
        return url_of(self._options.host, self._http)

    async def wait_failed(self) -> None:
        """One replica that is given up is only a loss; a service without any ends the graph."""
        await self._wait_until(lambda: False, self._lost_services)

    async def scale_to(self, service: str, num_replicas: int) -> None:
        async with self._scaling:
            plan = scaled(self.plan, service, num_replicas, self._inventory)
            present = [slot for slot in self._slots if slot.service == service]
            surplus = [slot for slot in present if slot.index >= num_replicas]
            for slot in surplus:
                slot.stop()
            with anyio.CancelScope(shield=True):  # half a change is no state; the grace period bounds it
                for slot in surplus:
                    await slot.wait_ended()
                    self._slots.remove(slot)
            self.plan = plan  # only now: the GPUs of the surplus are free
            for replica in plan.service(service).replicas[len(present) :]:
                self._add_slot(plan.service(service), replica)
            self._notify()

    async def drain(self) -> None:
        """Callers before those they call, so that what runs can still finish its calls."""
        if self._http is not None:
            self._http.close()  # nobody accepts any more once the frontends have closed theirs
        with anyio.move_on_after(self._options.drain_timeout_s):
            for service in reversed(self._services):
                slots = [slot for slot in self._slots if slot.service == service.name]
                for slot in slots:
                    slot.stop()
                for slot in slots:
                    await slot.wait_ended()

    # -- start

    async def _enter_discovery(self, stack: AsyncExitStack) -> Discovery:
        self._join_address: str | None = None
        self._joined: EmbeddedDiscovery | None = None
        discovery: Discovery
        if self._options.join is not None:
            self._registry = self._options.join
            discovery = self._joined = EmbeddedDiscovery(self._registry, secret=self._options.secret)
        else:
            host = "127.0.0.1" if self._options.secret is None else self._options.host
            server = RegistryServer(
                f"unix:{self._folder}/registry.sock", f"tcp:{host}:0", secret=self._options.secret
            )
            await stack.enter_async_context(server)
            self._registry, listening = server.addresses
            self._join_address = reachable(listening)
            self._say(f"another worker can join with --join {self._join_address}")
            discovery = MemoryDiscovery(server.service)
        stack.push_async_callback(discovery.close)
        return discovery

    def _add_slot(self, service: ServicePlan, replica: ReplicaPlan) -> None:
        async def start(worker_id: WorkerId, has_served: bool) -> GuardedProcess:
            return await self._start_replica(service, replica, worker_id, has_served)

        slot = ReplicaSlot(
            service.name,
            replica.index,
            start=start,
            printer=self._printer,
            on_change=self._notify,
            policy=self.restart_policy,
        )
        self._slots.append(slot)
        self._tasks.start_soon(slot.run, name=slot.name)

    async def _start_replica(
        self, service: ServicePlan, replica: ReplicaPlan, worker_id: WorkerId, has_served: bool
    ) -> GuardedProcess:
        http_fd = self._http.fileno() if self._http is not None and service.is_frontend else None
        if http_fd == -1:
            raise LaunchError("no frontend is started any more: the graph is stopping")
        spec = ReplicaSpec(
            plan=self.plan,
            service=service.name,
            replica=replica.index,
            worker_id=worker_id,
            registry=self._registry,
            listen=self._listen_address(),
            secret=self._options.secret,
            http_fd=http_fd,
            drain_timeout_s=self._options.drain_timeout_s,
            has_served=has_served,
        )
        return await GuardedProcess.start(
            [service.python or sys.executable, "-m", "dynamo_sdk.launch.replica_main"],
            worker_id=worker_id,
            environment=replica_environment(
                service,
                replica,
                even_share=even_share(self.plan, self._host(replica)),
                inherited=os.environ,
            ),
            grace_s=self._options.drain_timeout_s,
            stdin=msgspec.json.encode(spec),
            pass_fds=() if http_fd is None else (http_fd,),
            scratch=self._folder,
        )

    def _listen_address(self) -> str:
        if self._options.join is not None:
            return join_listen_address(self._options.join)
        if self._join_address is not None and not is_loopback(self._join_address):
            return f"tcp:{parse_address(self._join_address)[1]}:0"  # joined workers call from other hosts
        self._num_sockets += 1
        return f"unix:{self._folder}/{self._num_sockets}.sock"

    def _host(self, replica: ReplicaPlan) -> HostInventory:
        for host in self._inventory.hosts:
            if host.name == replica.host:
                return host
        return self._inventory.hosts[0]

    # -- watching

    def _on_fleet(self, fleet: Fleet) -> None:
        for slot in self._slots:
            slot.observe(fleet)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _waiting(self) -> list[ReplicaSlot]:
        return [slot for slot in self._slots if slot.state is not SlotState.READY]

    async def _wait_until(
        self, is_met: Callable[[], bool], beyond_repair: Callable[[], list[ReplicaSlot]]
    ) -> None:
        """Raises ``LaunchError`` or ``ConfigError`` once ``beyond_repair`` names a slot, or the graph is lost
        that was joined."""
        while True:
            if self._is_graph_lost:
                raise LaunchError(
                    f"the graph at {self._registry} was out of reach for {GRAPH_LOST_S:.0f} s: it has ended, "
                    "and so does what joined it"
                )
            if failed := beyond_repair():
                raise failure_of(failed)
            if is_met():
                return
            await self._changed.wait()

    def _failed_slots(self) -> list[ReplicaSlot]:
        return [slot for slot in self._slots if slot.state is SlotState.FAILED]

    def _lost_services(self) -> list[ReplicaSlot]:
        """The slots of services of which nothing can run any more."""
        alive = {slot.service for slot in self._slots if slot.state is not SlotState.FAILED}
        return [slot for slot in self._failed_slots() if slot.service not in alive]

    async def _watch_graph(self, joined: EmbeddedDiscovery) -> None:
        await joined.wait_lost(GRAPH_LOST_S)
        self._is_graph_lost = True
        self._notify()

    async def _tell_progress(self) -> None:
        started_s = anyio.current_time()
        while self._waiting():
            with anyio.move_on_after(PROGRESS_INTERVAL_S) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                names = ", ".join(slot.name for slot in self._waiting())
                self._say(f"waiting for {names} ({anyio.current_time() - started_s:.0f} s)")

    def _say(self, text: str) -> None:
        self._printer.line(LAUNCHER, text)

    async def _kill_everything(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            for slot in self._slots:
                slot.kill()
            for slot in self._slots:
                await slot.wait_ended()
        self._tasks.cancel_scope.cancel()


def _make_folder() -> Path:
    """A private folder whose sockets have short names. Only its owner may enter (mode 0700)."""
    root = tempfile.gettempdir()
    if len(os.fsencode(root)) > MAX_SOCKET_FOLDER_BYTES - len("/dynamo-sdk-12345678"):
        root = "/tmp"
    return Path(tempfile.mkdtemp(prefix="dynamo-sdk-", dir=root))
