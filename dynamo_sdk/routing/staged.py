"""``StagedRouter``: a router made of stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_sdk.errors import PluginError, Unavailable
from dynamo_sdk.interfaces import Candidate, Router, RoutingContext, RoutingDecision, RoutingRequest

from .pickers import pick_lowest
from .stages import Filter, Picker, Scored, Scorer


class StagedRouter(Router):
    """Filters in order, sums the scorers' terms, and picks. The decision lists the cost of every
    candidate that passed the filters.

    ``select`` raises ``Unavailable`` when a filter leaves nobody, and ``PluginError`` for a NaN cost.
    """

    def __init__(
        self,
        *,
        filters: Sequence[Filter] = (),
        scorers: Sequence[Scorer] = (),
        picker: Picker = pick_lowest,
    ) -> None:
        self._filters = tuple(filters)
        self._scorers = tuple(scorers)
        self._picker = picker

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        for keep in self._filters:
            num_before = len(candidates)
            candidates = keep(request, candidates, context)
            if not candidates:
                raise Unavailable(f"{_name(keep)} left none of {num_before} workers for the request")
        scored = [self._scored(request, candidate, context) for candidate in candidates]
        pick = self._picker(scored, context)
        chosen = pick.scored.candidate
        return RoutingDecision(
            worker_id=chosen.worker_id,
            dp_rank=chosen.dp_rank,
            reason=pick.reason,
            costs=tuple(entry.cost() for entry in scored) if self._scorers else (),
        )

    def _scored(self, request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> Scored:
        terms = tuple(score(request, candidate, context) for score in self._scorers)
        total = sum(term.value for term in terms)
        if math.isnan(total):
            raise PluginError(f"the cost of worker {candidate.worker_id} is NaN: {terms}")
        return Scored(candidate, terms, total)


def _name(stage: object) -> str:
    return getattr(stage, "__name__", type(stage).__name__)
