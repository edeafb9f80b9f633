"""Whose turn it is: a scorer with a memory, the whole of round-robin."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, CostTerm, RoutingContext, RoutingDecision, RoutingRequest
from dynamo_sdk.types import Role, WorkerId

from .pickers import pick_lowest
from .stages import BatchScorer, Pick

Seat = tuple[Role, WorkerId, int]


class Turns(BatchScorer):
    """The number of the last decision that chose a candidate, 0 for never: the lowest is next.

    Between two choices of one candidate every other that is there throughout is chosen exactly once,
    however many come and go: their counts never differ by more than one. Remembers at most
    ``max_remembered`` seats, and forgets those whose turn is longest past.
    """

    def __init__(self, *, max_remembered: int = 65_536) -> None:
        self._max_remembered = max_remembered
        self._num_decisions = 0
        self._last: dict[Seat, int] = {}  # in the order of turns, oldest first

    def totals(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[float]:
        last, role = self._last, request.role
        return [last.get((role, candidate.worker_id, candidate.dp_rank), 0) for candidate in candidates]

    def terms(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[tuple[CostTerm, ...]]:
        return [(CostTerm("last_turn", last),) for last in self.totals(request, candidates, context)]

    def took(self, request: RoutingRequest, decision: RoutingDecision) -> None:
        """Remember that ``decision`` was made."""
        seat = (request.role, decision.worker_id, decision.dp_rank)
        self._num_decisions += 1
        self._last.pop(seat, None)
        self._last[seat] = self._num_decisions
        if len(self._last) > self._max_remembered:
            del self._last[next(iter(self._last))]


def pick_next_turn(candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext) -> Pick:
    """Who has waited longest for a turn; newcomers by chance."""
    return Pick(pick_lowest(candidates, totals, context).index, f"its turn among {len(totals)}")
