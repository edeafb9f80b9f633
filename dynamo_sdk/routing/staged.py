"""``StagedRouter``: a router made of stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_sdk.errors import PluginError, Unavailable
from dynamo_sdk.interfaces import (
    Candidate,
    CandidateCost,
    CostTerm,
    Router,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)

from .pickers import pick_lowest
from .stages import BatchScorer, Filter, Picker, Scorer


class StagedRouter(Router):
    """Filters in order, sums the scorers' terms, and picks. An explained decision lists every candidate:
    its cost, or the filter that left it out.

    ``select`` raises ``Unavailable`` when a filter leaves nobody, and ``PluginError`` for a NaN cost.
    """

    def __init__(
        self,
        *,
        filters: Sequence[Filter] = (),
        scorers: Sequence[Scorer | BatchScorer] = (),
        picker: Picker = pick_lowest,
    ) -> None:
        self._filters = tuple(filters)
        self._scorers = tuple(scorers)
        self._picker = picker
        self.uses_overlap = any(
            getattr(stage, "uses_overlap", False) for stage in (*self._filters, *self._scorers, picker)
        )

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        left_out: list[CandidateCost] = []
        for keep in self._filters:
            before = candidates
            candidates = keep(request, before, context)
            if not candidates:
                raise Unavailable(f"{_name(keep)} left none of {len(before)} workers for the request")
            if context.is_explaining:
                left_out += _left_out(before, candidates, _name(keep))
        totals = self._totals(request, candidates, context)
        pick = self._picker(candidates, totals, context)
        chosen = candidates[pick.index]
        costs: tuple[CandidateCost, ...] = ()
        if context.is_explaining:
            costs = (*self._costs(request, candidates, context), *left_out)
        return RoutingDecision(
            worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, reason=pick.reason, costs=costs
        )

    def _totals(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[float]:
        totals = [0.0] * len(candidates)
        for position, score in enumerate(self._scorers):
            if isinstance(score, BatchScorer):
                column = score.totals(request, candidates, context)
            else:
                column = [score(request, candidate, context).value for candidate in candidates]
            totals = column if position == 0 else [a + b for a, b in zip(totals, column, strict=True)]
        if math.isnan(sum(totals)):
            for candidate, total in zip(candidates, totals, strict=True):
                if math.isnan(total):
                    raise PluginError(f"the cost of worker {candidate.worker_id} is NaN")
        return totals

    def _costs(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[CandidateCost]:
        terms: list[tuple[CostTerm, ...]] = [() for _ in candidates]
        for score in self._scorers:
            if isinstance(score, BatchScorer):
                more = score.terms(request, candidates, context)
            else:
                more = [(score(request, candidate, context),) for candidate in candidates]
            terms = [had + new for had, new in zip(terms, more, strict=True)]
        return [
            CandidateCost(worker_id=candidate.worker_id, dp_rank=candidate.dp_rank, terms=parts)
            for candidate, parts in zip(candidates, terms, strict=True)
        ]


def _left_out(before: Sequence[Candidate], after: Sequence[Candidate], name: str) -> list[CandidateCost]:
    kept = {id(candidate) for candidate in after}
    return [
        CandidateCost(worker_id=candidate.worker_id, dp_rank=candidate.dp_rank, filtered_by=name)
        for candidate in before
        if id(candidate) not in kept
    ]


def _name(stage: object) -> str:
    return getattr(stage, "__name__", type(stage).__name__)
