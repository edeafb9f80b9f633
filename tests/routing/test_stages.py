from __future__ import annotations

from collections.abc import Sequence

import pytest

from dynamo_sdk.errors import PluginError, Unavailable
from dynamo_sdk.interfaces import Candidate, CostTerm, Router, RoutingContext, RoutingRequest
from dynamo_sdk.routing import Pick, Sample, StagedRouter, pick_any, router_from_function
from dynamo_sdk.routing.turns import Turns

from .strategies import context, request, worker

FLEET = [worker("a", active=3), worker("b", active=1), worker("c", active=2)]


def without_b(
    request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
) -> Sequence[Candidate]:
    return [candidate for candidate in candidates if candidate.worker_id != "b"]


def nobody(
    request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
) -> Sequence[Candidate]:
    return []


def active(request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> CostTerm:
    return CostTerm("active", candidate.num_active_requests)


def not_a_number(request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> CostTerm:
    return CostTerm("broken", float("nan"))


def second(candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext) -> Pick:
    return Pick(1, "the second")


def test_filters_then_scores_then_picks() -> None:
    decision = StagedRouter(filters=[without_b], scorers=[active, active]).select(request(), FLEET, context())
    assert decision.worker_id == "c"
    assert decision.reason == "lowest cost 4 of 2"
    assert [
        (cost.worker_id, [term.value for term in cost.terms], cost.filtered_by) for cost in decision.costs
    ] == [("a", [3, 3], None), ("c", [2, 2], None), ("b", [], "without_b")]


def test_a_picker_can_be_replaced() -> None:
    decision = StagedRouter(picker=second).select(request(), FLEET, context())
    assert (decision.worker_id, decision.reason) == ("b", "the second")


def test_a_filter_that_leaves_nobody_is_named() -> None:
    with pytest.raises(Unavailable, match="nobody left none of 2 workers"):
        StagedRouter(filters=[without_b, nobody]).select(request(), FLEET, context())


def test_a_cost_that_is_no_number_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match="the cost of worker a is NaN"):
        StagedRouter(scorers=[not_a_number]).select(request(), FLEET, context())


def test_infinite_costs_are_last_but_allowed() -> None:
    def unwanted(request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> CostTerm:
        return CostTerm("unwanted", float("inf") if candidate.worker_id != "c" else 1e300)

    assert StagedRouter(scorers=[unwanted]).select(request(), FLEET, context()).worker_id == "c"
    assert StagedRouter(scorers=[unwanted]).select(request(), FLEET[:2], context()).worker_id in {"a", "b"}


def test_a_sample_has_distinct_members_and_no_more_than_there_are() -> None:
    for size, expected in ((1, 1), (2, 2), (3, 3), (9, 3)):
        sample = Sample(size)(request(), FLEET, context())
        assert len({candidate.worker_id for candidate in sample}) == expected


def test_pick_any_ignores_costs() -> None:
    ctx = context()
    router = StagedRouter(scorers=[active], picker=pick_any)
    assert {router.select(request(), FLEET, ctx).worker_id for _ in range(100)} == {"a", "b", "c"}


def test_turns_remember_a_bounded_number() -> None:
    turns, ctx = Turns(max_remembered=2), context()
    router = StagedRouter(scorers=[turns])
    for name in "abc":
        turns.took(request(), router.select(request(), [worker(name)], ctx))
    assert turns.totals(request(), [worker(name) for name in "abc"], ctx) == [0, 2, 3]


def test_a_function_is_router_enough() -> None:
    @router_from_function
    def emptiest(
        request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> Candidate:
        """The emptiest worker."""
        return min(candidates, key=lambda candidate: candidate.num_active_requests)

    assert issubclass(emptiest, Router)
    assert (emptiest.__name__, emptiest.__doc__) == ("emptiest", "The emptiest worker.")
    decision = emptiest().select(request(), FLEET, context())
    assert (decision.worker_id, decision.reason) == ("b", "emptiest")
