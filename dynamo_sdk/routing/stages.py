"""A decision in three steps: filter, score, pick. Each step is a function, so a policy extends one of them.

::

    candidates ──filters──> those that may ──scorers──> cost of each ──picker──> one, and why
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamo_sdk.interfaces import Candidate, CostTerm, RoutingContext, RoutingRequest

# A stage that looks at `Candidate.overlap` has an attribute `uses_overlap` that is true.


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


class BatchScorer(ABC):
    """A scorer that goes over all candidates in one call, and names the parts only when asked to explain."""

    @abstractmethod
    def totals(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[float]:
        """The cost of each, in their order."""

    @abstractmethod
    def terms(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[tuple[CostTerm, ...]]:
        """The same, in parts: the sum of each is its total."""


@dataclass(frozen=True, slots=True)
class Pick:
    """Which of the candidates, by its place among them, and why in a few words."""

    index: int
    reason: str


class Picker(Protocol):
    """Chooses one of the candidates (never empty) by their total costs."""

    def __call__(
        self, candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext
    ) -> Pick: ...
