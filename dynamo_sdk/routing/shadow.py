"""``ShadowRouter``: one router acts, others decide on the same traffic and only look on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from dynamo_sdk.interfaces import (
    Candidate,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)

from .config import ShadowConfig
from .kv_cost import KvCost
from .naming import router_named
from .stages import BatchScorer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ShadowStatistics:
    """``regret_s``: summed over decisions that differ, by how much the acting choice was dearer than the
    shadow's, in the expected seconds of the ``kv`` cost; negative = it was cheaper."""

    num_decisions: int = 0
    num_different: int = 0
    num_failures: int = 0
    regret_s: float = 0.0


class ShadowRouter(Router):
    """``acting`` decides. What the others would have done is counted in ``statistics``, by their names. They
    learn the same facts, so one that would have acted differently sees a fleet that it did not make. A shadow
    that fails costs nothing but its own count."""

    def __init__(self, acting: Router, shadows: Mapping[str, Router]) -> None:
        self._acting = acting
        self._shadows = dict(shadows)
        self._judge: BatchScorer = KvCost()
        self.statistics = {name: ShadowStatistics() for name in shadows}
        self.uses_overlap = True  # the judge does

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        decision = self._acting.select(request, candidates, context)
        totals: list[float] | None = None
        for name, shadow in self._shadows.items():
            seen = self.statistics[name]
            seen.num_decisions += 1
            own = RoutingContext(now_s=context.now_s, rng=Random(seen.num_decisions))
            try:
                other = shadow.select(request, candidates, own)
                acted, wanted = _place(candidates, decision), _place(candidates, other)
            except Exception:
                if not seen.num_failures:
                    logger.exception("shadow router %s failed", name)
                seen.num_failures += 1
                continue
            if acted != wanted:
                totals = totals or self._judge.totals(request, candidates, context)
                seen.num_different += 1
                seen.regret_s += totals[acted] - totals[wanted]
        return decision

    def observe(self, fact: RouterFact, now_s: float) -> None:
        self._acting.observe(fact, now_s)
        for name, shadow in self._shadows.items():
            try:
                shadow.observe(fact, now_s)
            except Exception:
                self.statistics[name].num_failures += 1


class ConfiguredShadowRouter(ShadowRouter):
    """As a deploy file says it."""

    def __init__(self, config: ShadowConfig | None = None) -> None:
        config = config or ShadowConfig()
        super().__init__(router_named(config.acting), {name: router_named(name) for name in config.shadows})


def _place(candidates: Sequence[Candidate], decision: RoutingDecision) -> int:
    """Raises ``ValueError`` for a stranger."""
    seats = [(candidate.worker_id, candidate.dp_rank) for candidate in candidates]
    return seats.index((decision.worker_id, decision.dp_rank))
