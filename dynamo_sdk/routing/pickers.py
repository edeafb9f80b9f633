"""Pickers: one of those that were scored."""

from __future__ import annotations

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
