"""Asks a pool's router, and lets it learn what became of the request."""

from __future__ import annotations

import logging
from random import Random

from dynamo_sdk.errors import DynamoError, EngineFailed, Unavailable
from dynamo_sdk.flow import Action, RequestFlow, Route
from dynamo_sdk.interfaces import Router, RouterFact, RoutingContext, RoutingRequest
from dynamo_sdk.runtime.clock import Clock

from .pools import Pools

logger = logging.getLogger(__name__)


class Chooser:
    """One per frontend. A router is somebody's plugin: what it raises ends at most the request."""

    def __init__(self, pools: Pools, clock: Clock, rng: Random) -> None:
        self._pools = pools
        self._clock = clock
        self._rng = rng

    def choose(self, flow: RequestFlow, model: str, router: Router, ask: Route) -> list[Action]:
        """A worker of the pool for the request; report it to the flow."""
        pool = self._pools.pool(model, ask.pool)
        candidates = pool.candidates
        if ask.excluded:
            candidates = [found for found in candidates if found.worker_id not in ask.excluded]
        if not candidates:
            nobody = Unavailable(f"no {ask.pool} worker of model {model!r} can take the request now")
            return flow.not_routed(ask.pool, nobody)
        request = flow.request
        now_s = self._clock.now_s()
        try:
            decision = router.select(
                RoutingRequest(
                    request_id=request.request_id,
                    model=request.model,
                    role=ask.pool,
                    num_tokens=ask.num_tokens,
                    block_size=pool.block_size,
                    max_output_tokens=request.sampling.max_tokens,
                    priority=request.priority,
                ),
                candidates,
                RoutingContext(now_s=now_s, rng=self._rng),
            )
        except DynamoError as error:
            return flow.not_routed(ask.pool, error)
        except Exception as error:
            logger.exception("router of model %s failed", model)
            return flow.not_routed(
                ask.pool, EngineFailed(f"the router failed: {type(error).__name__}: {error}")
            )
        chosen = pool.by_id.get(decision.worker_id)
        if chosen is None or chosen.worker_id in ask.excluded:
            stray = EngineFailed(f"the router chose {decision.worker_id!r}, which was not a candidate")
            return flow.not_routed(ask.pool, stray)
        return flow.routed(ask.pool, chosen, now_s, decision.dp_rank if chosen.dp_size > 1 else None)

    def observe(self, model: str, router: Router, fact: RouterFact) -> None:
        """Let book and router learn a fact."""
        now_s = self._clock.now_s()
        self._pools.observe(fact, now_s)
        try:
            router.observe(fact, now_s)
        except Exception:  # the request does not depend on what it learns
            logger.exception("router of model %s failed to learn", model)
