"""The dispatcher with real flows, connections and routers, against workers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial

import pytest

from dynamo_sdk.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from dynamo_sdk.flow import FlowConfig
from dynamo_sdk.interfaces import (
    Candidate,
    Freed,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.runtime.clock import settle
from dynamo_sdk.services.dispatch import Dispatcher, DispatchLimits, ModelRoute
from dynamo_sdk.testing.fakes import FakeKVConnector
from dynamo_sdk.types import (
    FinishReason,
    GenerateRequest,
    Role,
    SamplingParams,
    WorkerId,
    pack_tokens,
    unpack_tokens,
)

from .chunks import chunks_of
from .fleet import Fleet, token_at

pytestmark = pytest.mark.anyio

MAX_TOKENS = 8
EXPECTED = [token_at(position) for position in range(MAX_TOKENS)]
LIMITS = DispatchLimits(stall_timeout_s=20.0, wait_for_worker_s=15.0)


class Rotating(Router):
    """Takes the first candidate by name; remembers what it was told."""

    def __init__(self) -> None:
        self.facts: list[RouterFact] = []

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        return RoutingDecision(worker_id=candidates[0].worker_id)

    def observe(self, fact: RouterFact, now_s: float) -> None:
        self.facts.append(fact)


class Lost(Rotating):
    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        return RoutingDecision(worker_id=WorkerId("atlantis"))


class Broken(Rotating):
    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        raise ZeroDivisionError("a bug")


class Forgetful(Rotating):
    def observe(self, fact: RouterFact, now_s: float) -> None:
        raise ZeroDivisionError("a bug")


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet() as ready:
        yield ready


def route(connector: FakeKVConnector | None = None, router: Router | None = None) -> ModelRoute:
    return ModelRoute(
        name="m",
        config=FlowConfig(connector=connector),
        routers={role: router or Rotating() for role in Role},
        on_migration=lambda _num_kept_tokens: None,
    )


def request(**sampling: float) -> GenerateRequest:
    return GenerateRequest(
        request_id="r",
        model="m",
        prompt=pack_tokens([7, 8, 9]),
        sampling=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0),
    )


async def collect(fleet: Fleet, how: ModelRoute, *, deadline_s: float = 1000.0) -> list[int]:
    dispatcher = Dispatcher(fleet.pools, fleet.clock, LIMITS)
    tokens: list[int] = []
    try:
        async with aclosing(chunks_of(partial(dispatcher.start, request(), how, deadline_s))) as chunks:
            async for chunk in chunks:
                tokens += chunk.token_ids
                if chunk.finish_reason is not None:
                    assert chunk.finish_reason is FinishReason.LENGTH
                    assert chunk.usage is not None
                    assert chunk.usage.num_output_tokens == len(tokens)
        return tokens
    finally:
        await settle()
        await dispatcher.close()
        is_idle = all(c.num_active_requests == 0 for c in fleet.pools.candidates(fleet.pools.all_workers()))
        assert is_idle, "a worker is still counted as busy"


async def test_aggregated(fleet: Fleet) -> None:
    await fleet.add("a", Role.AGGREGATED)
    assert await collect(fleet, route()) == EXPECTED


async def test_disaggregated(fleet: Fleet) -> None:
    prefill, decode = await fleet.add("p", Role.PREFILL), await fleet.add("d", Role.DECODE)
    assert await collect(fleet, route(FakeKVConnector())) == EXPECTED
    assert [r.role for r in prefill.requests + decode.requests] == [Role.PREFILL, Role.DECODE]
    assert unpack_tokens(decode.requests[0].generated) == EXPECTED[:1]
    assert decode.requests[0].kv_transfer is not None


async def test_a_worker_that_dies_mid_stream_costs_no_token(fleet: Fleet) -> None:
    dying, heir = await fleet.add("a", Role.AGGREGATED), await fleet.add("b", Role.AGGREGATED)
    dying.hang_after = 5
    running = asyncio.create_task(collect(fleet, route()))
    await dying.hanging.wait()
    await fleet.kill("a")
    assert await running == EXPECTED
    assert unpack_tokens(heir.requests[0].generated) == EXPECTED[:5]


async def test_a_worker_that_hangs_is_given_up(fleet: Fleet) -> None:
    hung = await fleet.add("a", Role.AGGREGATED)
    await fleet.add("b", Role.AGGREGATED)
    hung.hang_after = 3
    running = asyncio.create_task(collect(fleet, route()))
    await hung.hanging.wait()
    await fleet.clock.advance(LIMITS.stall_timeout_s - 1)
    assert not running.done()
    await fleet.clock.advance(2.0)
    assert await running == EXPECTED
    await settle()
    assert hung.num_open == 0, "the hung leg was cancelled"


async def test_a_slow_stream_is_not_a_hung_one(fleet: Fleet) -> None:
    """The watchdog counts from the last chunk, not from the start."""
    worker = await fleet.add("a", Role.AGGREGATED)
    worker.hang_after = 2
    dispatcher = Dispatcher(fleet.pools, fleet.clock, LIMITS)
    chunks = chunks_of(partial(dispatcher.start, request(), route(), 1000.0))
    assert (await anext(chunks)).token_ids == (EXPECTED[0],)
    await fleet.clock.advance(LIMITS.stall_timeout_s - 1)
    assert (await anext(chunks)).token_ids == (EXPECTED[1],)
    waiting = asyncio.ensure_future(anext(chunks))
    await fleet.clock.advance(LIMITS.stall_timeout_s - 1)
    assert len(worker.requests) == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    await chunks.aclose()
    await dispatcher.close()


async def test_the_deadline_ends_it(fleet: Fleet) -> None:
    worker = await fleet.add("a", Role.AGGREGATED)
    worker.hang_after = 3
    running = asyncio.create_task(collect(fleet, route(), deadline_s=10.0))
    await worker.hanging.wait()
    await fleet.clock.advance(11.0)
    with pytest.raises(DeadlineExceeded):
        await running
    assert worker.num_open == 0


async def test_leaving_frees_both_sides(fleet: Fleet) -> None:
    prefill, decode = await fleet.add("p", Role.PREFILL), await fleet.add("d", Role.DECODE)
    decode.hang_after = 1
    dispatcher = Dispatcher(fleet.pools, fleet.clock, LIMITS)
    chunks = chunks_of(partial(dispatcher.start, request(), route(FakeKVConnector()), 1000.0))
    assert (await anext(chunks)).token_ids == (EXPECTED[0],)
    waiting = asyncio.ensure_future(anext(chunks))
    await decode.hanging.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    await chunks.aclose()
    await settle()
    assert decode.num_open == 0
    assert prefill.released == ["r"], "decode never said that it had fetched the blocks"
    await dispatcher.close()


async def test_without_a_prefill_worker_decode_does_it_all(fleet: Fleet) -> None:
    decode = await fleet.add("d", Role.DECODE)
    assert await collect(fleet, route(FakeKVConnector())) == EXPECTED
    assert [r.role for r in decode.requests] == [Role.AGGREGATED]


async def test_a_dead_prefill_worker_is_replaced_by_decode(fleet: Fleet) -> None:
    prefill = await fleet.add("p", Role.PREFILL)
    await fleet.add("d", Role.DECODE)
    prefill.hang_after = 0
    running = asyncio.create_task(collect(fleet, route(FakeKVConnector())))
    await prefill.hanging.wait()
    await fleet.kill("p")
    assert await running == EXPECTED


async def test_nobody_there_is_said_at_once(fleet: Fleet) -> None:
    with pytest.raises(Unavailable, match="no aggregated worker of model 'm'"):
        await collect(fleet, route())


async def test_a_request_waits_for_the_heir_of_its_worker(fleet: Fleet) -> None:
    dying = await fleet.add("a", Role.AGGREGATED)
    dying.hang_after = 2
    running = asyncio.create_task(collect(fleet, route()))
    await dying.hanging.wait()
    await fleet.kill("a")
    await settle()
    assert not running.done()
    await fleet.add("b", Role.AGGREGATED)
    assert await running == EXPECTED


async def test_overload_reaches_the_client_as_overload(fleet: Fleet) -> None:
    for name in "ab":
        (await fleet.add(name, Role.AGGREGATED)).error = Overloaded("full")
    with pytest.raises(Overloaded):
        await collect(fleet, route())
    assert [len(worker.requests) for worker in fleet.workers.values()] == [1, 1]


async def test_a_clients_mistake_is_not_retried(fleet: Fleet) -> None:
    worker = await fleet.add("a", Role.AGGREGATED)
    worker.error = InvalidRequest("too long", param="prompt")
    with pytest.raises(InvalidRequest):
        await collect(fleet, route())
    assert len(worker.requests) == 1


@pytest.mark.parametrize(
    ("router", "message"), [(Lost(), "chose 'atlantis'"), (Broken(), "ZeroDivisionError: a bug")]
)
async def test_a_faulty_router_fails_its_request_only(fleet: Fleet, router: Router, message: str) -> None:
    await fleet.add("a", Role.AGGREGATED)
    with pytest.raises(EngineFailed, match=message):
        await collect(fleet, route(router=router))
    assert await collect(fleet, route()) == EXPECTED


async def test_routers_hear_the_end_of_what_they_began(fleet: Fleet) -> None:
    await fleet.add("a", Role.AGGREGATED)
    router = Rotating()
    await collect(fleet, route(router=router))
    assert [type(fact).__name__ for fact in router.facts] == ["Routed", "PrefillDone", "Freed"]
    last = router.facts[-1]
    assert isinstance(last, Freed)
    assert not last.is_failure


async def test_load_feeds_reach_the_candidates(fleet: Fleet) -> None:
    await fleet.add("a", Role.AGGREGATED)
    await settle()
    [candidate] = fleet.pools.candidates(fleet.pools.workers("m", Role.AGGREGATED))
    assert candidate.load is not None
    assert candidate.load_at_s == fleet.clock.now_s()


async def test_a_router_that_cannot_learn_costs_nothing_but_its_learning(fleet: Fleet) -> None:
    worker = await fleet.add("w", Role.AGGREGATED)
    assert await collect(fleet, route(router=Forgetful())) == EXPECTED
    worker.hang_after = 2
    dispatcher = Dispatcher(fleet.pools, fleet.clock, LIMITS)
    chunks = chunks_of(partial(dispatcher.start, request(), route(router=Forgetful()), 1000.0))
    await anext(chunks)
    await chunks.aclose()
    await settle()
    assert worker.num_open == 0
    await dispatcher.close()
