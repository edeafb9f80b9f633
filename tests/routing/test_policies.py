"""What each built-in policy promises, against naive restatements of it."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.interfaces import Candidate, Router
from dynamo_sdk.routing.config import LoadConfig
from dynamo_sdk.routing.policies import (
    LeastLoadedRouter,
    PowerOfTwoRouter,
    RandomRouter,
    RoundRobinRouter,
)
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

from .strategies import context, fleets, request, worker

POLICIES = [RoundRobinRouter, RandomRouter, PowerOfTwoRouter, LeastLoadedRouter]


def load_of(candidate: Candidate, config: LoadConfig) -> float:
    """The rule in one line: the larger of the two counts, and what waits once more."""
    if candidate.load is None or candidate.load_at_s is None or -candidate.load_at_s > config.max_load_age_s:
        return candidate.num_active_requests
    reported = candidate.load.num_running + candidate.load.num_waiting
    return max(candidate.num_active_requests, reported) + config.waiting_weight * candidate.load.num_waiting


@pytest.mark.parametrize("policy", POLICIES)
@given(rounds=st.lists(fleets(), min_size=1, max_size=10), seed=st.integers(0, 2**32))
def test_picks_a_candidate_and_says_why(
    policy: type[Router], rounds: list[list[Candidate]], seed: int
) -> None:
    router, ctx = policy(), context(seed)
    for fleet in rounds:
        decision = router.select(request(), fleet, ctx)
        seats = {(candidate.worker_id, candidate.dp_rank) for candidate in fleet}
        assert (decision.worker_id, decision.dp_rank) in seats
        assert decision.reason
        assert {(cost.worker_id, cost.dp_rank) for cost in decision.costs} <= seats


@pytest.mark.parametrize("policy", POLICIES)
@given(rounds=st.lists(fleets(), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_same_chance_same_decisions(policy: type[Router], rounds: list[list[Candidate]], seed: int) -> None:
    first, second = policy(), policy()
    one, two = context(seed), context(seed)
    for fleet in rounds:
        assert first.select(request(), fleet, one) == second.select(request(), fleet, two)


@given(
    others=st.lists(st.sets(st.sampled_from("cdefgh")), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
)
def test_round_robin_is_fair_within_one_while_others_come_and_go(others: list[set[str]], seed: int) -> None:
    """``a`` and ``b`` stay; in every window their counts differ by at most one."""
    router, ctx = RoundRobinRouter(), context(seed)
    balance = [0]
    for guests in others:
        fleet = [worker(name) for name in sorted(guests | {"a", "b"})]
        ctx.rng.shuffle(fleet)
        chosen = router.select(request(), fleet, ctx).worker_id
        balance.append(balance[-1] + (chosen == "a") - (chosen == "b"))
    assert max(balance) - min(balance) <= 1


@given(num_workers=st.integers(1, 7), num_rounds=st.integers(1, 5))
def test_round_robin_gives_all_the_same_in_full_rounds(num_workers: int, num_rounds: int) -> None:
    router, ctx = RoundRobinRouter(), context()
    fleet = [worker(str(number)) for number in range(num_workers)]
    counts = Counter(router.select(request(), fleet, ctx).worker_id for _ in range(num_workers * num_rounds))
    assert counts == {candidate.worker_id: num_rounds for candidate in fleet}


def test_round_robin_keeps_a_turn_per_role() -> None:
    router, ctx = RoundRobinRouter(), context()
    fleet = [worker("a"), worker("b")]
    first = router.select(request(Role.PREFILL), fleet, ctx).worker_id
    for _ in range(4):  # an even number of decode turns changes nothing for prefill
        router.select(request(Role.DECODE), fleet, ctx)
    assert router.select(request(Role.PREFILL), fleet, ctx).worker_id != first


@given(fleet=fleets(min_size=2), seed=st.integers(0, 2**32))
def test_power_of_two_never_takes_the_worse_of_its_two(fleet: list[Candidate], seed: int) -> None:
    decision = PowerOfTwoRouter().select(request(), fleet, context(seed))
    totals = {
        (cost.worker_id, cost.dp_rank): cost.total for cost in decision.costs if cost.filtered_by is None
    }
    assert len(totals) == 2
    assert totals[decision.worker_id, decision.dp_rank] == min(totals.values())


def test_power_of_two_draws_every_pair() -> None:
    fleet = [worker(name) for name in "abcd"]
    ctx = context()
    router = PowerOfTwoRouter()
    pairs = {
        frozenset(
            cost.worker_id for cost in router.select(request(), fleet, ctx).costs if cost.filtered_by is None
        )
        for _ in range(200)
    }
    assert pairs == {frozenset(map(WorkerId, pair)) for pair in itertools.combinations("abcd", 2)}


@given(
    fleet=fleets(),
    seed=st.integers(0, 2**32),
    config=st.builds(
        LoadConfig,
        max_load_age_s=st.floats(0.1, 30),
        waiting_weight=st.floats(0, 4).map(lambda w: w // 0.5 / 2),
    ),
)
def test_least_loaded_is_the_minimum_of_the_naive_rule(
    fleet: list[Candidate], seed: int, config: LoadConfig
) -> None:
    decision = LeastLoadedRouter(config).select(request(), fleet, context(seed))
    naive = {(candidate.worker_id, candidate.dp_rank): load_of(candidate, config) for candidate in fleet}
    assert naive[decision.worker_id, decision.dp_rank] == min(naive.values())
    assert {
        (cost.worker_id, cost.dp_rank): sum(term.value for term in cost.terms) for cost in decision.costs
    } == naive


def test_least_loaded_trusts_its_own_count_before_a_report_arrives() -> None:
    """A burst between two reports must not all go to the worker that was idle at the last one."""
    idle, busy = LoadSnapshot(at_s=0.0), LoadSnapshot(at_s=0.0, num_running=3)
    fleet = [worker("a", active=4, load=idle), worker("b", active=3, load=busy)]
    assert LeastLoadedRouter().select(request(), fleet, context()).worker_id == "b"


def test_an_old_report_says_nothing() -> None:
    busy = LoadSnapshot(at_s=0.0, num_running=30, num_waiting=9)
    fleet = [worker("a", load=busy, age_s=11.0), worker("b", active=1)]
    assert LeastLoadedRouter().select(request(), fleet, context()).worker_id == "a"


@pytest.mark.parametrize("policy", [RandomRouter, PowerOfTwoRouter, LeastLoadedRouter])
def test_equals_are_chosen_about_equally(policy: type[Router]) -> None:
    router, ctx = policy(), context(7)
    fleet = [worker(name) for name in "abcd"]
    counts = Counter(router.select(request(), fleet, ctx).worker_id for _ in range(4000))
    assert all(850 < counts[WorkerId(name)] < 1150 for name in "abcd"), counts
