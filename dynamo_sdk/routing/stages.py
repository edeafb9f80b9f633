"""A decision in three steps: filter, score, pick. Each step is a function, so a policy extends one of them.

::

    candidates ──filters──> those that may ──scorers──> cost terms of each ──picker──> one, and why
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamo_sdk.interfaces import Candidate, CandidateCost, CostTerm, RoutingContext, RoutingRequest


class Filter(Protocol):
    """Keeps the candidates that may take the request, in their order. An empty answer means: none can."""

    def __call__(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> Sequence[Candidate]: ...


class Scorer(Protocol):
    """One named part of a candidate's cost; lower is better, and no cost may be NaN."""

    def __call__(
        self, request: RoutingRequest, candidate: Candidate, context: RoutingContext
    ) -> CostTerm: ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its cost. ``total`` is the sum of the terms."""

    candidate: Candidate
    terms: tuple[CostTerm, ...]
    total: float

    def cost(self) -> CandidateCost:
        return CandidateCost(
            worker_id=self.candidate.worker_id, dp_rank=self.candidate.dp_rank, terms=self.terms
        )


@dataclass(frozen=True, slots=True)
class Pick:
    """The chosen one, and why in a few words."""

    scored: Scored
    reason: str


class Picker(Protocol):
    """Chooses one of the scored candidates (never empty)."""

    def __call__(self, scored: Sequence[Scored], context: RoutingContext) -> Pick: ...
