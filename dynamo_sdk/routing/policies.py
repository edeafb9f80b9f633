"""The built-in routers: the stages, put together."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, RoutingContext, RoutingDecision, RoutingRequest

from .config import LoadConfig
from .filters import Sample
from .pickers import pick_any
from .scorers import OtherRequests, WaitingRequests, active_requests
from .staged import StagedRouter
from .stages import Scorer
from .turns import Turns, pick_next_turn


class RoundRobinRouter(StagedRouter):
    """Everybody in turn; newcomers first, in an order by chance."""

    def __init__(self) -> None:
        self._turns = Turns()
        super().__init__(scorers=[self._turns], picker=pick_next_turn)

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        decision = super().select(request, candidates, context)
        self._turns.took(request, decision)
        return decision


class RandomRouter(StagedRouter):
    """Anybody, by chance."""

    def __init__(self) -> None:
        super().__init__(picker=pick_any)


class PowerOfTwoRouter(StagedRouter):
    """The less busy of two drawn by chance: nearly as even as asking all, and no herd runs to one worker
    whose report is out of date (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").
    """

    def __init__(self, config: LoadConfig | None = None) -> None:
        super().__init__(filters=[Sample(2)], scorers=load_scorers(config or LoadConfig()))


class LeastLoadedRouter(StagedRouter):
    """The least busy of all."""

    def __init__(self, config: LoadConfig | None = None) -> None:
        super().__init__(scorers=load_scorers(config or LoadConfig()))


def load_scorers(config: LoadConfig) -> list[Scorer]:
    """How busy a worker is: our requests, those of others, and those that wait."""
    return [
        active_requests,
        OtherRequests(max_age_s=config.max_load_age_s),
        WaitingRequests(weight=config.waiting_weight, max_age_s=config.max_load_age_s),
    ]
