"""Registry, leases, both discoveries, and the fleet view on top."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dynamo_sdk.errors import ConnectionLost, HandshakeError, NotFound
from dynamo_sdk.interfaces import Discovery
from dynamo_sdk.runtime.clock import ManualClock, settle
from dynamo_sdk.runtime.discovery import FIRST_RETRY_S, EmbeddedDiscovery, MemoryDiscovery
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.memory import Delivery, Fate, Fault, MemoryNetwork
from dynamo_sdk.runtime.registry import RegistryServer, RegistryService, RegistryState
from dynamo_sdk.types import WorkerId, WorkerRecord

pytestmark = pytest.mark.anyio


def record(name: str, *, is_ready: bool = False) -> WorkerRecord:
    return WorkerRecord(
        worker_id=WorkerId(name), service="S", replica=0, address="memory:1", is_ready=is_ready
    )


@asynccontextmanager
async def embedded(clock: ManualClock, network: MemoryNetwork) -> AsyncIterator[EmbeddedDiscovery]:
    discovery = EmbeddedDiscovery("memory:registry", network=network, clock=clock)
    try:
        yield discovery
    finally:
        await discovery.close()


@asynccontextmanager
async def view(discovery: Discovery) -> AsyncIterator[FleetView]:
    fleet = FleetView(discovery)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.close()


@pytest.fixture(params=["embedded", "memory"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Discovery, Discovery]]:
    """Two processes' discoveries of one registry."""
    if request.param == "memory":
        registry = RegistryService(ManualClock())
        yield MemoryDiscovery(registry), MemoryDiscovery(registry)
        return
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with (
        RegistryServer("memory:registry", network=network, clock=clock),
        embedded(clock, network) as one,
        embedded(clock, network) as other,
    ):
        yield one, other


async def test_records_are_seen_changed_and_withdrawn(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    async with view(theirs) as fleet:
        assert fleet.workers == {}
        lease = await ours.register(record("a"))
        await fleet.wait_until(lambda workers: "a" in workers)
        await lease.update(record("a", is_ready=True))
        await fleet.wait_until(lambda workers: workers[WorkerId("a")].is_ready)
        assert fleet.of_service("S") == [record("a", is_ready=True)]
        await lease.revoke()
        await lease.revoke()
        await fleet.wait_until(lambda workers: not workers)


async def test_closing_withdraws_everything(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    await ours.register(record("a"))
    await ours.register(record("b"))
    async with view(theirs) as fleet:
        assert set(fleet.workers) == {"a", "b"}
        await ours.close()
        await fleet.wait_until(lambda workers: not workers)


async def test_a_dead_process_is_gone_at_once() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with RegistryServer("memory:registry", network=network, clock=clock) as registry:
        dying = EmbeddedDiscovery("memory:registry", network=network, clock=clock)
        await dying.register(record("a"))
        assert set(registry.service.fleet()) == {"a"}
        (await dying.connection()).close_soon()
        await settle()
        assert registry.service.fleet() == {}
        await dying.close()


async def test_a_silent_host_is_gone_after_its_lease() -> None:
    """Nothing arrives any more, and nothing says so: only time tells."""
    clock = ManualClock()
    is_silent = False

    def faults(_address: str, _data: bytes) -> Fate:
        return Fault.DROP if is_silent else Delivery()

    network = MemoryNetwork(clock=clock, faults=faults)
    async with RegistryServer("memory:registry", network=network, clock=clock) as registry:
        async with embedded(clock, network) as discovery:
            await discovery.register(record("a"), ttl_s=9.0)
            await clock.advance(30.0)
            assert set(registry.service.fleet()) == {"a"}, "it was renewed"
            is_silent = True
            await clock.advance(8.0)
            assert set(registry.service.fleet()) <= {"a"}
            await clock.advance(10.0)
            assert registry.service.fleet() == {}
            is_silent = False


async def test_a_registry_is_lost_when_it_is_out_of_reach_for_long() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with embedded(clock, network) as discovery:
        async with RegistryServer("memory:registry", network=network, clock=clock):
            fleet = FleetView(discovery)
            await fleet.start()
            waiting = asyncio.get_running_loop().create_task(discovery.wait_lost(60.0))
            await clock.advance(100.0)
        await clock.advance(50.0)
        assert not waiting.done()
        async with RegistryServer("memory:registry", network=network, clock=clock):
            await clock.advance(10.0)
        await clock.advance(59.0)
        assert not waiting.done(), "it counts anew"
        await clock.advance(10.0)
        assert waiting.done()
        await fleet.close()


async def test_a_registry_that_has_become_another_one_is_lost() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with embedded(clock, network) as discovery:
        async with RegistryServer("memory:registry", network=network, clock=clock):
            fleet = FleetView(discovery)
            await fleet.start()
            waiting = asyncio.get_running_loop().create_task(discovery.wait_lost(60.0))
            await settle()
        async with RegistryServer("memory:registry", network=network, clock=clock, secret="of others"):
            await clock.advance(100.0)
            assert waiting.done()
        await fleet.close()


async def test_leases_and_watchers_survive_a_restart_of_the_registry() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with embedded(clock, network) as discovery:
        async with RegistryServer("memory:registry", network=network, clock=clock):
            await discovery.register(record("a"))
            fleet = FleetView(discovery)
            await fleet.start()
        await settle()
        assert set(fleet.workers) == {"a"}, "readers keep the last fleet they saw"
        async with RegistryServer("memory:registry", network=network, clock=clock) as registry:
            await clock.advance(10.0)
            assert set(registry.service.fleet()) == {"a"}
            assert set(fleet.workers) == {"a"}
            await fleet.close()
            await discovery.close()


async def test_what_changes_while_the_registry_is_away_is_announced_when_it_is_back() -> None:
    clock = ManualClock()
    is_held_back = False

    def faults(_address: str, _data: bytes) -> Fate:
        return Delivery(delay_s=1.0) if is_held_back else Delivery()

    network = MemoryNetwork(clock=clock, faults=faults)
    async with RegistryServer("memory:registry", network=network, clock=clock) as registry:
        async with embedded(clock, network) as discovery:
            lease = await discovery.register(record("a"))
            is_held_back = True
            (await discovery.connection()).close_soon()
            await clock.advance(2.5)  # the greetings are exchanged, the record is on its way
            await lease.update(record("a", is_ready=True))
            await clock.advance(10.0)
            assert registry.service.fleet() == {"a": record("a", is_ready=True)}
            is_held_back = False


async def test_a_lease_number_of_an_earlier_registry_means_nothing_to_the_next() -> None:
    """Numbers start anew: an update or a revoke in between must not hit another worker's lease."""
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with embedded(clock, network) as discovery:
        async with RegistryServer("memory:registry", network=network, clock=clock):
            lease = await discovery.register(record("a"))
        await settle()
        async with RegistryServer("memory:registry", network=network, clock=clock) as registry:
            async with embedded(clock, network) as other:
                await other.register(record("b"))
                await discovery.connection()
                await lease.update(record("a", is_ready=True))
                assert registry.service.fleet()[WorkerId("b")] == record("b")
                await lease.revoke()
                assert set(registry.service.fleet()) == {"b"}


async def test_each_loss_of_the_registry_is_retried_as_fast_as_the_first() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with RegistryServer("memory:registry", network=network, clock=clock) as registry:
        async with embedded(clock, network) as discovery:
            await discovery.register(record("a"))
            for _ in range(8):
                (await discovery.connection()).close_soon()
                await settle()
                assert registry.service.fleet() == {}
                await clock.advance(FIRST_RETRY_S)
                assert set(registry.service.fleet()) == {"a"}


async def test_nobody_at_the_address_is_said_at_once() -> None:
    clock = ManualClock()
    async with embedded(clock, MemoryNetwork(clock=clock)) as discovery:
        with pytest.raises(ConnectionLost, match="nobody answers at memory:registry"):
            await discovery.register(record("a"))
        with pytest.raises(ConnectionLost):
            await FleetView(discovery).start()


async def test_another_secret_is_said_at_once() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with RegistryServer("memory:registry", secret="a", network=network, clock=clock):
        discovery = EmbeddedDiscovery("memory:registry", secret="b", network=network, clock=clock)
        with pytest.raises(HandshakeError):
            await discovery.register(record("a"))
        await discovery.close()


async def test_a_slow_watcher_skips_to_the_latest() -> None:
    registry = RegistryService(ManualClock())
    discovery = MemoryDiscovery(registry)
    fleets = discovery.watch()
    assert await anext(fleets) == {}
    lease = await discovery.register(record("a"))
    await lease.update(record("a", is_ready=True))
    await discovery.register(record("b"))
    assert await anext(fleets) == {"a": record("a", is_ready=True), "b": record("b")}
    waiting = asyncio.ensure_future(anext(fleets))
    await settle()
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    await fleets.aclose()


class RegistryMachine(RuleBasedStateMachine):
    """Leases against a plain dictionary and a clock on the wall."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RegistryState()
        self.now_s = 0.0
        self.model: dict[int, tuple[WorkerRecord, float, float]] = {}

    @rule(name=st.integers(0, 99), ttl_s=st.integers(1, 10))
    def grant(self, name: int, ttl_s: int) -> None:
        given = record(f"{name}-{len(self.model)}-{self.now_s}")
        number = self.state.grant(given, float(ttl_s), self.now_s)
        assert number not in self.model
        self.model[number] = (given, float(ttl_s), self.now_s + ttl_s)

    @rule(number=st.integers(1, 12))
    def renew(self, number: int) -> None:
        if number in self.model:
            given, ttl_s, _ = self.model[number]
            self.state.renew(number, self.now_s)
            self.model[number] = (given, ttl_s, self.now_s + ttl_s)
        else:
            with pytest.raises(NotFound):
                self.state.renew(number, self.now_s)

    @rule(number=st.integers(1, 12))
    def update(self, number: int) -> None:
        if number in self.model:
            given, ttl_s, end_s = self.model[number]
            changed = msgspec.structs.replace(given, is_ready=not given.is_ready)
            self.state.update(number, changed)
            self.model[number] = (changed, ttl_s, end_s)

    @rule(number=st.integers(1, 12))
    def revoke(self, number: int) -> None:
        self.state.revoke(number)
        self.model.pop(number, None)

    @rule(by_s=st.integers(1, 6))
    def time_passes(self, by_s: int) -> None:
        self.now_s += by_s
        self.model = {n: lease for n, lease in self.model.items() if lease[2] > self.now_s}
        next_s = self.state.expire(self.now_s)
        assert next_s == min((end_s for _, _, end_s in self.model.values()), default=None)

    @invariant()
    def both_agree(self) -> None:
        assert self.state.fleet() == {given.worker_id: given for given, _, _ in self.model.values()}


RegistryMachine.TestCase.settings = settings(max_examples=60)
TestRegistry = RegistryMachine.TestCase
