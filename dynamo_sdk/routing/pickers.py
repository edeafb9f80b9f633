"""Pickers: one of those that were scored."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import RoutingContext

from .stages import Pick, Scored


def pick_lowest(scored: Sequence[Scored], context: RoutingContext) -> Pick:
    """The lowest total cost; ties by chance, so that equal workers fill evenly."""
    lowest = min(entry.total for entry in scored)
    best = [entry for entry in scored if entry.total == lowest]
    reason = f"lowest cost {lowest:g} of {len(scored)}"
    if len(best) == 1:
        return Pick(best[0], reason)
    return Pick(context.rng.choice(best), f"{reason}, one of {len(best)} equals")


def pick_any(scored: Sequence[Scored], context: RoutingContext) -> Pick:
    """Anybody, by chance, whatever the costs are."""
    return Pick(context.rng.choice(scored), f"by chance, one of {len(scored)}")
