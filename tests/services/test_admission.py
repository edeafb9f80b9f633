"""Who waits in the frontend, who goes next, and who is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from dynamo_sdk.errors import Overloaded
from dynamo_sdk.flow import AdmissionLimits, FlowConfig
from dynamo_sdk.routing.policies import LeastLoadedRouter
from dynamo_sdk.runtime.clock import settle
from dynamo_sdk.services.dispatch import DispatchedCall, Dispatcher, DispatchLimits, ModelRoute
from dynamo_sdk.services.openai.backend import ChunkSink, RoutingHints
from dynamo_sdk.types import GenerateChunk, GenerateRequest, Role, SamplingParams, pack_tokens

from .fleet import Fleet

pytestmark = pytest.mark.anyio

ROUTE = ModelRoute(
    name="m",
    config=FlowConfig(),
    routers={Role.AGGREGATED: LeastLoadedRouter()},
    on_migration=lambda _: None,
)
REQUEST = GenerateRequest(
    request_id="r", model="m", prompt=pack_tokens([7] * 20), sampling=SamplingParams(max_tokens=2)
)


class Ends(ChunkSink):
    def __init__(self) -> None:
        self.is_done = False
        self.error: Exception | None = None

    def on_chunk(self, chunk: GenerateChunk) -> None:
        self.is_done = chunk.finish_reason is not None

    def on_error(self, error: Exception) -> None:
        self.error = error


class Line:
    """A fleet of one worker that hangs, and a frontend that lets it have one prompt at a time."""

    def __init__(self, fleet: Fleet, *, max_waiting_per_tenant: int = 9) -> None:
        self.fleet = fleet
        self.dispatcher = Dispatcher(
            fleet.pools,
            fleet.clock,
            DispatchLimits(
                max_prefill_tokens=10,
                admission=AdmissionLimits(max_waiting_per_tenant=max_waiting_per_tenant),
            ),
        )

    async def ask(
        self, name: str, *, tenant: str | None = None, priority: int = 0
    ) -> tuple[DispatchedCall, Ends]:
        sink = Ends()
        request = msgspec.structs.replace(REQUEST, request_id=name, priority=priority)
        hints = RoutingHints(tenant=tenant)
        call = self.dispatcher.start(request, ROUTE, self.fleet.clock.now_s() + 1000, sink, hints)
        await settle()
        return call, sink

    @property
    def served(self) -> list[str]:
        return [request.request_id for request in self.fleet.workers["w"].requests]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet() as ready:
        worker = await ready.add("w", Role.AGGREGATED)
        worker.hang_after = 0
        await settle()
        yield ready


async def test_one_waits_until_there_is_room(fleet: Fleet) -> None:
    line = Line(fleet)
    first, _ = await line.ask("first")
    _, second = await line.ask("second")
    assert line.served == ["first"]
    assert line.dispatcher.admission.num_waiting == 1
    fleet.workers["w"].hang_after = None
    first.cancel()
    await settle()
    assert line.served == ["first", "second"]
    assert second.is_done
    assert line.dispatcher.admission.num_waiting == 0
    await line.dispatcher.close()


async def test_those_who_leave_are_not_sent_and_priorities_go_first(fleet: Fleet) -> None:
    line = Line(fleet)
    running, _ = await line.ask("running")
    calls = {name: (await line.ask(name, priority=p))[0] for name, p in (("a", 0), ("b", 0), ("c", -1))}
    calls["a"].cancel()
    running.cancel()
    await settle()
    assert line.served == ["running", "c"]
    calls["c"].cancel()
    await settle()
    assert line.served == ["running", "c", "b"]
    calls["b"].cancel()
    await settle()
    await line.dispatcher.close()


async def test_beyond_the_limit_is_overload(fleet: Fleet) -> None:
    line = Line(fleet, max_waiting_per_tenant=1)
    calls = [(await line.ask("running"))[0], (await line.ask("a", tenant="one"))[0]]
    _, refused = await line.ask("b", tenant="one")
    assert isinstance(refused.error, Overloaded)
    calls.append((await line.ask("c", tenant="two"))[0])
    assert line.dispatcher.admission.num_waiting == 2
    for call in reversed(calls):
        call.cancel()
    await settle()
    await line.dispatcher.close()


async def test_when_the_last_worker_goes_those_who_wait_are_told(fleet: Fleet) -> None:
    """Like every request whose worker has died: after a while in which none comes back."""
    line = Line(fleet)
    await line.ask("running")
    _, waiting = await line.ask("waiting")
    await fleet.kill("w")
    await settle()
    await fleet.clock.advance(DispatchLimits().wait_for_worker_s + 1)
    await settle()
    assert waiting.error is not None
    assert line.dispatcher.admission.num_waiting == 0
    await line.dispatcher.close()


async def test_nobody_waits_unless_asked_to(fleet: Fleet) -> None:
    dispatcher = Dispatcher(fleet.pools, fleet.clock, DispatchLimits())
    calls = []
    for name in "abc":
        request = msgspec.structs.replace(REQUEST, request_id=name)
        calls.append(dispatcher.start(request, ROUTE, 1000.0, Ends()))
    await settle()
    assert len(fleet.workers["w"].requests) == 3
    for call in calls:
        call.cancel()
    await settle()
    await dispatcher.close()
