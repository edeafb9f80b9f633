"""A log replays bit for bit: same router, same decisions; and it holds no text."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from pydantic import ValidationError

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import PrefillDone, Routed, Router, RoutingContext
from dynamo_sdk.routing.config import SessionConfig, ShadowConfig
from dynamo_sdk.routing.decision_log import decided, heard, read_log, replay
from dynamo_sdk.routing.dynamo_kv import DynamoKvRouter
from dynamo_sdk.routing.kv import KvRouter
from dynamo_sdk.routing.policies import LeastLoadedRouter, PowerOfTwoRouter, RandomRouter, RoundRobinRouter
from dynamo_sdk.routing.session import SessionRouter
from dynamo_sdk.routing.shadow import ConfiguredShadowRouter, ShadowRouter
from dynamo_sdk.testing.router import routing_rounds

from .strategies import context, request, worker

ROUTERS: list[Callable[[], Router]] = [
    KvRouter,
    DynamoKvRouter,
    RoundRobinRouter,
    RandomRouter,
    PowerOfTwoRouter,
    LeastLoadedRouter,
    lambda: SessionRouter(SessionConfig(otherwise="power-of-two")),
]


def record(router: Router) -> tuple[bytes, list[tuple[str, int]]]:
    log, seats = b"", []
    for number, (asked, candidates) in enumerate(routing_rounds()):
        asked = msgspec.structs.replace(asked, block_keys=[number, number + 2**63])
        seed = number * 7
        decision = router.select(
            asked, candidates, RoutingContext(now_s=float(number), rng=Random(seed), is_explaining=False)
        )
        log += decided(asked, candidates, decision, now_s=float(number), seed=seed)
        seats.append((str(decision.worker_id), decision.dp_rank))
        for fact in (
            Routed(
                request_id=asked.request_id,
                worker_id=decision.worker_id,
                role=asked.role,
                num_tokens=asked.num_tokens,
                dp_rank=decision.dp_rank,
            ),
            PrefillDone(request_id=asked.request_id, worker_id=decision.worker_id),
        ):
            router.observe(fact, number + 0.5)
            log += heard(fact, number + 0.5)
    return log, seats


@pytest.mark.parametrize("factory", ROUTERS)
def test_the_same_router_decides_the_same(factory: Callable[[], Router]) -> None:
    log, seats = record(factory())
    replayed = list(replay(read_log(log), factory()))
    assert all(one.is_same for one in replayed)
    assert [(one.entry.worker_id, one.entry.dp_rank) for one in replayed] == seats


def test_another_router_decides_otherwise_and_says_why() -> None:
    log, _ = record(KvRouter())
    replayed = list(replay(read_log(log), LeastLoadedRouter(), is_explaining=True))
    num_same = sum(one.is_same for one in replayed)
    assert 0 < num_same < len(replayed)
    assert all(one.decision is not None and one.decision.costs for one in replayed)


def test_a_log_holds_hashes_and_no_names_of_clients() -> None:
    asked = msgspec.structs.replace(request(), session="alice@example.com", tenant="acme corporation")
    chosen = KvRouter().select(asked, [worker("a")], context())
    [entry] = read_log(decided(asked, [worker("a")], chosen, now_s=0.0, seed=0))
    shown = repr(entry)
    assert "alice" not in shown
    assert "acme" not in shown
    other = msgspec.structs.replace(asked, session="bob")
    [second] = read_log(decided(other, [worker("a")], chosen, now_s=0.0, seed=0))
    assert entry != second


def test_a_log_that_was_cut_off_is_read_to_there_and_rubbish_is_named() -> None:
    log, seats = record(RandomRouter())
    assert len(list(replay(read_log(log[:-3]), RandomRouter()))) == len(seats)
    with pytest.raises(InvalidRequest, match="not a decision log"):
        list(read_log(b"\x05\x00\x00\x00hello"))
    with pytest.raises(InvalidRequest, match="a frame of"):
        list(read_log(b"hello world"))


def test_a_decision_among_many_workers_is_a_few_kilobytes() -> None:
    fleet = [worker(f"worker-{number}", active=number % 7) for number in range(64)]
    asked = msgspec.structs.replace(request(), block_keys=[Random(k).getrandbits(64) for k in range(64)])
    chosen = KvRouter().select(asked, fleet, context())
    assert len(decided(asked, fleet, chosen, now_s=0.0, seed=0)) < 4096


class Broken(LeastLoadedRouter):
    def select(self, *_: object) -> None:  # type: ignore[override]
        raise RuntimeError("no")


def test_a_router_that_fails_in_replay_is_an_answer_too() -> None:
    log, seats = record(RandomRouter())
    replayed = list(replay(read_log(log), Broken()))
    assert len(replayed) == len(seats)
    assert {one.error for one in replayed} == {"RuntimeError: no"}


def test_shadows_count_what_they_would_have_done_and_change_nothing() -> None:
    fleet = [worker("idle"), worker("busy", active=5)]
    plain, ctx = LeastLoadedRouter(), context()
    shadowed = ShadowRouter(
        LeastLoadedRouter(), {"same": LeastLoadedRouter(), "random": RandomRouter(), "broken": Broken()}
    )
    for _ in range(100):
        assert (
            shadowed.select(request(), fleet, ctx).worker_id == plain.select(request(), fleet, ctx).worker_id
        )
    seen = shadowed.statistics
    assert (seen["same"].num_decisions, seen["same"].num_different) == (100, 0)
    assert 20 < seen["random"].num_different < 80
    assert seen["broken"].num_failures == 100


def test_regret_is_what_the_acting_choice_costs_more() -> None:
    line = worker("line")
    line.num_prefill_requests, line.num_prefill_tokens, line.first_prefill_tokens = 2, 20_000, 10_000
    line.prefill_since_s, line.num_active_requests = 0.0, 2
    fleet = [line, worker("free", active=5)]
    blind = ShadowRouter(LeastLoadedRouter(), {"kv": KvRouter()})
    assert blind.select(request(), fleet, context()).worker_id == "line"
    assert blind.statistics["kv"].regret_s == pytest.approx(2.0, rel=0.1)


def test_routers_inside_routers_are_named() -> None:
    configured = ConfiguredShadowRouter(ShadowConfig(shadows=("random", f"{__name__}:Broken")))
    configured.select(request(), [worker("a")], context())
    assert list(configured.statistics) == ["random", f"{__name__}:Broken"]
    with pytest.raises(
        ValidationError, match=r"no router 'nope' to put inside another \(there are dynamo-kv"
    ):
        SessionConfig(otherwise="nope")
    with pytest.raises(ValidationError, match="makes a Random, not a Router"):
        SessionConfig(otherwise="random:Random")
    with pytest.raises(ValidationError, match="cannot be made without arguments"):
        SessionConfig(otherwise="dynamo_sdk.routing.shadow:ShadowRouter")
    with pytest.raises(ValidationError, match="cannot import 'random:Rand': AttributeError"):
        ShadowConfig(shadows=("random:Rand",))
