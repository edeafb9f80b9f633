from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.interfaces import Candidate, RoutingContext
from dynamo_sdk.routing.pickers import SoftmaxPicker, pick_among_frontends, pick_any, pick_lowest
from dynamo_sdk.routing.stages import Picker
from dynamo_sdk.types import WorkerId

PICKERS = [pick_lowest, pick_any, pick_among_frontends, SoftmaxPicker(0.1), SoftmaxPicker(100.0)]
costs = st.floats(allow_nan=False, min_value=-1e9, max_value=1e9) | st.sampled_from(
    [0.0, math.inf, -math.inf]
)


def fleet(num: int, *, num_others: int = 0) -> list[Candidate]:
    found = [Candidate(worker_id=WorkerId(f"w{number}")) for number in range(num)]
    for candidate in found:
        candidate.num_other_requests = num_others
    return found


@pytest.mark.parametrize("picker", PICKERS, ids=lambda picker: getattr(picker, "__name__", "softmax"))
@given(totals=st.lists(costs, min_size=1, max_size=6), num_others=st.integers(0, 3), seed=st.integers(0, 9))
def test_somebody_is_picked_whatever_the_costs_are(
    picker: Picker, totals: list[float], num_others: int, seed: int
) -> None:
    context = RoutingContext(now_s=0.0, rng=Random(seed))
    pick = picker(fleet(len(totals), num_others=num_others), totals, context)
    if picker is not pick_any and min(totals) < math.inf:
        assert totals[pick.index] < math.inf, "an infinite cost, and somebody was cheaper"


@pytest.mark.parametrize("picker", [pick_among_frontends, SoftmaxPicker(1.0)])
@pytest.mark.parametrize("cost", [math.inf, -math.inf])
def test_equals_of_infinite_cost_share(picker: Picker, cost: float) -> None:
    context = RoutingContext(now_s=0.0, rng=Random(1))
    picked = {picker(fleet(3, num_others=1), [cost, cost, cost], context).index for _ in range(50)}
    assert picked == {0, 1, 2}
