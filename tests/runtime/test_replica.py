"""One replica from its spec to its end, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from dynamo_sdk.errors import ConfigError, EngineStartError
from dynamo_sdk.graph import Graph, depends, endpoint, service
from dynamo_sdk.interfaces import Fleet
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.edges import edge_client
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.memory import MemoryNetwork
from dynamo_sdk.runtime.registry import RegistryService
from dynamo_sdk.runtime.replica import ReplicaSpec, run_replica
from dynamo_sdk.runtime.service import ManagedService, ServiceContext
from dynamo_sdk.types import WorkerId, WorkerRecord
from dynamo_sdk.types.plan import DeploymentPlan, EdgePlan, Json, ServicePlan

pytestmark = pytest.mark.anyio

LIVES: list[str] = []


@service
class Dictionary:
    def __init__(self, *, language: str = "en") -> None:
        self.language = language

    async def on_start(self) -> None:
        if self.language == "xx":
            raise EngineStartError("no such language")
        LIVES.append("started")

    async def on_stop(self) -> None:
        LIVES.append("stopped")

    @endpoint
    async def look_up(self, word: str) -> str:
        return f"{word} ({self.language})"

    @endpoint
    async def spell(self, word: str) -> AsyncIterator[str]:
        for letter in word:
            yield letter


@service
class Reader:
    dictionary = depends(Dictionary)

    @endpoint
    async def read(self, text: str) -> list[str]:
        return [await self.dictionary.look_up(word) for word in text.split()]


GRAPH = Graph(Reader)


def plan(**args: Json) -> DeploymentPlan:
    edge = EdgePlan(attribute="dictionary", service="Dictionary")
    return DeploymentPlan(
        target="in this test",
        models=(),
        services=(
            ServicePlan(name="Dictionary", factory="x:Dictionary", args=args),
            ServicePlan(name="Reader", factory="x:Reader", edges=(edge,)),
        ),
    )


class Host:
    """Starts replicas as tasks of one process."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.registry = RegistryService()
        self.view = FleetView(MemoryDiscovery(self.registry))

    def start(self, name: str, **args: Json) -> tuple[anyio.Event, asyncio.Task[None]]:
        stop = anyio.Event()
        spec = ReplicaSpec(
            plan=plan(**args),
            service=name,
            replica=0,
            worker_id=f"{name}.0",
            registry="memory",
            listen=f"memory:{name}",
            drain_timeout_s=5.0,
        )
        running = run_replica(
            spec, stop, graph=GRAPH, network=self.network, discovery=MemoryDiscovery(self.registry)
        )
        return stop, asyncio.get_running_loop().create_task(running)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    LIVES.clear()
    ready = Host()
    await ready.view.start()
    yield ready
    await ready.view.close()


def is_ready(name: str, fleet: Fleet) -> bool:
    record = fleet.get(WorkerId(f"{name}.0"))
    return record is not None and record.is_ready


async def test_a_replica_is_ready_when_its_edges_have_answered(host: Host) -> None:
    stop_reader, reader = host.start("Reader")
    await host.view.wait_until(lambda fleet: "Reader.0" in fleet)
    assert not is_ready("Reader", host.view.workers), "nobody answers its edge yet"
    stop_dictionary, dictionary = host.start("Dictionary", language="fr")
    await host.view.wait_until(lambda fleet: is_ready("Dictionary", fleet) and is_ready("Reader", fleet))
    assert LIVES == ["started"]

    stop_reader.set()
    await reader
    assert set(host.view.workers) <= {"Dictionary.0", "Reader.0"}
    stop_dictionary.set()
    await dictionary
    await host.view.wait_until(lambda fleet: not fleet)
    assert LIVES == ["started", "stopped"]


async def test_stopping_before_it_is_ready_is_clean(host: Host) -> None:
    stop, reader = host.start("Reader")
    await host.view.wait_until(lambda fleet: "Reader.0" in fleet)
    stop.set()
    await reader
    await host.view.wait_until(lambda fleet: not fleet)


async def test_a_service_that_cannot_start_says_why_and_is_stopped(host: Host) -> None:
    _, dictionary = host.start("Dictionary", language="xx")
    with pytest.raises(EngineStartError, match="no such language"):
        await dictionary
    assert LIVES == ["stopped"]
    assert host.view.workers == {}


async def test_arguments_that_do_not_fit_are_the_users(host: Host) -> None:
    _, dictionary = host.start("Dictionary", dialect="any")
    with pytest.raises(ConfigError, match=r"services\.Dictionary\.args do not fit Dictionary"):
        await dictionary


async def test_cancelling_leaves_nothing_behind(host: Host) -> None:
    _, dictionary = host.start("Dictionary")
    await host.view.wait_until(lambda fleet: is_ready("Dictionary", fleet))
    dictionary.cancel()
    await asyncio.wait([dictionary])
    await host.view.wait_until(lambda fleet: not fleet)
    assert LIVES == ["started", "stopped"]
    assert host.network.listeners == {}


def test_only_wired_edges_have_a_client() -> None:
    with pytest.raises(TypeError, match="no edge of a running graph"):
        edge_client(object())


class Fuse(ManagedService):
    """Breaks when told to, after it was ready."""

    broken = anyio.Event()

    async def start(self, context: ServiceContext) -> WorkerRecord:
        return context.record

    async def wait_failed(self) -> None:
        await self.broken.wait()
        raise EngineStartError("the fuse has blown")

    async def close(self) -> None:
        LIVES.append("closed")


@service
class Lamp(Fuse): ...


async def test_a_service_that_breaks_ends_its_replica(host: Host) -> None:
    stop = anyio.Event()
    spec = ReplicaSpec(
        plan=DeploymentPlan(target="", models=(), services=(ServicePlan(name="Lamp", factory="x:Lamp"),)),
        service="Lamp",
        replica=0,
        worker_id="Lamp.0",
        registry="memory",
        listen="memory:Lamp",
    )
    running = asyncio.create_task(
        run_replica(
            spec, stop, graph=Graph(Lamp), network=host.network, discovery=MemoryDiscovery(host.registry)
        )
    )
    await host.view.wait_until(lambda fleet: is_ready("Lamp", fleet))
    Fuse.broken.set()
    with pytest.raises(EngineStartError, match="the fuse has blown"):
        await running
    await host.view.wait_until(lambda fleet: not fleet)
    assert LIVES == ["closed"]
