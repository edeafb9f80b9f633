"""Pickers: one of those that were scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, RoutingContext

from .stages import Pick


def pick_lowest(candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext) -> Pick:
    """The lowest total cost; ties by chance, so that equal workers fill evenly."""
    lowest = min(totals)
    reason = f"lowest cost {lowest:g} of {len(totals)}"
    num_best = totals.count(lowest)
    if num_best == 1:
        return Pick(totals.index(lowest), reason)
    best = [index for index, total in enumerate(totals) if total == lowest]
    return Pick(context.rng.choice(best), f"{reason}, one of {num_best} equals")


def pick_any(candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext) -> Pick:
    """Anybody, by chance, whatever the costs are."""
    return Pick(context.rng.randrange(len(totals)), f"by chance, one of {len(totals)}")


def pick_among_frontends(
    candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext
) -> Pick:
    """The lowest total cost, but for other frontends: they see the same worker as the best one, and choose it
    before any report says so. Alone, a request costs what it costs; with a share ``s`` of the requests
    theirs, it meets one of theirs that often, which costs about as much again; less often where they have
    fewer requests than there are workers. So whoever is within that share of the lowest cost is as good, and
    chance decides."""
    num_others = sum([candidate.num_other_requests for candidate in candidates])
    if not num_others:
        return pick_lowest(candidates, totals, context)
    num_ours = sum([candidate.num_active_requests for candidate in candidates])
    lowest = min(totals)
    if math.isinf(lowest):
        return pick_lowest(candidates, totals, context)
    share = num_others / (num_others + num_ours) * min(1.0, num_others / len(candidates))
    limit = lowest + abs(lowest) * share
    good = [index for index, total in enumerate(totals) if total <= limit]
    index = context.rng.choice(good)
    return Pick(index, f"cost {totals[index]:g}, by chance one of {len(good)} near the lowest {lowest:g}")


class SoftmaxPicker:
    """By chance, the likelier the lower the cost: ``p ~ exp(-(cost - lowest) / ((highest - lowest) * T))``.
    A temperature ``T`` near 0 takes the lowest, a high one anybody. An infinite cost is for when nobody is
    cheaper; then the infinite ones are equals."""

    def __init__(self, temperature: float) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self._temperature = temperature

    def __call__(
        self, candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext
    ) -> Pick:
        lowest = min(totals)
        if math.isinf(lowest):
            return pick_lowest(candidates, totals, context)
        highest = max(total for total in totals if total < math.inf)
        scale = (highest - lowest) * self._temperature or 1.0
        weights = [math.exp((lowest - total) / scale) for total in totals]
        [index] = context.rng.choices(range(len(totals)), weights)
        return Pick(index, f"by chance, the likelier the cheaper, cost {totals[index]:g} of {len(totals)}")
