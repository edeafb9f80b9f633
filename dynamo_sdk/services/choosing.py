"""Asks a pool's router, and lets it learn what became of the request."""

from __future__ import annotations

import logging
from random import Random

from dynamo_sdk.errors import DynamoError, EngineFailed, Unavailable
from dynamo_sdk.flow import Action, RequestFlow, Route
from dynamo_sdk.interfaces import (
    Candidate,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.kv import PrefixKeys, prefix_keys
from dynamo_sdk.routing.decision_log import decided, heard
from dynamo_sdk.routing.explanation import explain
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.types import GenerateRequest, KVSource, WorkerId

from .decision_writer import DecisionWriter
from .openai.backend import NO_HINTS, RoutingHints
from .pools import Pool, Pools

logger = logging.getLogger(__name__)


class Chooser:
    """One per frontend. A router is somebody's plugin: what it raises ends at most the request."""

    def __init__(self, pools: Pools, clock: Clock, rng: Random, log: DecisionWriter | None = None) -> None:
        self._pools = pools
        self._clock = clock
        self._rng = rng
        self._log = log
        self._logged_rng = Random()

    def choose(
        self, flow: RequestFlow, model: str, router: Router, ask: Route, hints: RoutingHints = NO_HINTS
    ) -> list[Action]:
        """A worker of the pool for the request; report it to the flow."""
        name = flow.request.served_name
        pool = self._pools.pool(name, ask.pool)
        candidates = pool.candidates
        if ask.excluded:
            candidates = [found for found in candidates if found.worker_id not in ask.excluded]
        if not candidates:
            nobody = Unavailable(f"no {ask.pool} worker of model {name!r} can take the request now")
            return flow.not_routed(ask.pool, nobody)
        now_s = self._clock.now_s()
        keys = _keys(flow.request, pool) if router.uses_overlap else None
        if keys is not None:
            self._pools.book.look_up(keys, now_s)
        request = _routing_request(flow.request, ask, pool, hints, keys)
        rng, seed = self._rng, 0
        if self._log is not None:
            rng, seed = self._logged_rng, self._rng.getrandbits(63)
            rng.seed(seed)
        try:
            decision = router.select(
                request,
                candidates,
                RoutingContext(now_s=now_s, rng=rng, is_explaining=hints.explanations is not None),
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
        if not 0 <= decision.dp_rank < chosen.dp_size:
            stray = EngineFailed(
                f"the router chose rank {decision.dp_rank} of {chosen.dp_size} of {chosen.worker_id!r}"
            )
            return flow.not_routed(ask.pool, stray)
        if self._log is not None:
            self._log.write(decided(request, candidates, decision, now_s=now_s, seed=seed))
        if hints.explanations is not None:
            hints.explanations.append(explain(request, candidates, decision, ask.excluded, now_s))
        num_cached_tokens, kv_source = 0, None
        if keys is not None:
            candidate = _candidate(candidates, decision)
            num_cached_tokens = self._pools.book.cached_tokens(candidate, request.num_tokens, pool.block_size)
            kv_source = self._kv_source(candidate, ask)
            self._pools.book.sent(candidate, keys, now_s)  # from now on all of it counts as held there
        dp_rank = decision.dp_rank if chosen.dp_size > 1 else None
        return flow.routed(ask.pool, chosen, now_s, dp_rank, num_cached_tokens, kv_source)

    def observe(self, model: str, router: Router, fact: RouterFact) -> None:
        """Let book and router learn a fact."""
        now_s = self._clock.now_s()
        self._pools.observe(fact, now_s)
        if self._log is not None:
            self._log.write(heard(fact, now_s))
        try:
            router.observe(fact, now_s)
        except Exception:  # the request does not depend on what it learns
            logger.exception("router of model %s failed to learn", model)

    def _kv_source(self, candidate: Candidate, ask: Route) -> KVSource | None:
        """Another worker that has clearly more of the prompt than the chosen one; of any pool of the model:
        who decoded an answer has it in its tiers when the next turn is prefilled."""
        found = self._pools.book.kv_source(candidate)
        if found is None or found[0] in ask.excluded:
            return None
        record = self._pools.worker(found[0])
        if record is None or record.kv_address is None:
            return None
        return KVSource(worker_id=record.worker_id, address=record.kv_address, num_blocks=found[1])


def _candidate(candidates: list[Candidate], decision: RoutingDecision) -> Candidate:
    return next(
        candidate
        for candidate in candidates
        if candidate.worker_id == decision.worker_id and candidate.dp_rank == decision.dp_rank
    )


def _keys(request: GenerateRequest, pool: Pool) -> PrefixKeys | None:
    """Of everything whose KV the worker needs; None where no block size is known."""
    if pool.block_size is None:
        return None
    tokens = request.prompt + request.generated if request.generated else request.prompt
    return prefix_keys(tokens, pool.block_size, lora=request.lora, cache_salt=request.cache_salt)


def _routing_request(
    request: GenerateRequest, ask: Route, pool: Pool, hints: RoutingHints, keys: PrefixKeys | None
) -> RoutingRequest:
    return RoutingRequest(
        request_id=request.request_id,
        model=request.model,
        role=ask.pool,
        num_tokens=ask.num_tokens,
        block_size=pool.block_size,
        max_output_tokens=request.sampling.max_tokens,
        block_keys=() if keys is None else keys,
        priority=request.priority,
        session=hints.session,
        tenant=hints.tenant,
        worker_id=None if hints.worker is None else WorkerId(hints.worker),
    )
