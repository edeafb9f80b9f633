"""Why a request went where it went, in data that a client can read."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from dynamo_sdk.interfaces import Candidate, CandidateCost, RoutingDecision, RoutingRequest
from dynamo_sdk.types import Role, WorkerId


class ExplainedCandidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``cost`` is the sum of ``terms``, in the unit of the router: seconds for ``kv``. ``load_age_s``: how
    old the worker's report was (None = there was none). ``filtered_by``: who left it out; it has no cost."""

    worker: WorkerId
    dp_rank: int = 0
    cost: float | None = None
    terms: dict[str, float] = {}
    filtered_by: str | None = None
    num_cached_blocks: int = 0
    num_active_requests: int = 0
    load_age_s: float | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision. ``candidates``: the cheapest first, those that were left out last. ``runner_up``: the
    cheapest of those that were not chosen."""

    pool: Role
    worker: WorkerId
    dp_rank: int = 0
    reason: str
    runner_up: WorkerId | None = None
    num_tokens: int
    num_blocks: int = 0
    candidates: tuple[ExplainedCandidate, ...] = ()
    excluded: tuple[WorkerId, ...] = ()


def explain(
    request: RoutingRequest,
    candidates: Sequence[Candidate],
    decision: RoutingDecision,
    excluded: Collection[WorkerId],
    now_s: float,
) -> Explanation:
    """``excluded``: workers that failed this request before, and were no candidates."""
    costs = {(cost.worker_id, cost.dp_rank): cost for cost in decision.costs}
    shown = [
        _explained(candidate, costs.get((candidate.worker_id, candidate.dp_rank)), now_s)
        for candidate in candidates
    ]
    shown.sort(key=lambda one: (one.cost is None, one.cost or 0.0, one.worker, one.dp_rank))
    chosen = (decision.worker_id, decision.dp_rank)
    others = [one.worker for one in shown if one.cost is not None and (one.worker, one.dp_rank) != chosen]
    return Explanation(
        pool=request.role,
        worker=decision.worker_id,
        dp_rank=decision.dp_rank,
        reason=decision.reason,
        runner_up=others[0] if others else None,
        num_tokens=request.num_tokens,
        num_blocks=len(request.block_keys),
        candidates=tuple(shown),
        excluded=tuple(sorted(excluded)),
    )


def _explained(candidate: Candidate, cost: CandidateCost | None, now_s: float) -> ExplainedCandidate:
    is_scored = cost is not None and cost.filtered_by is None
    return ExplainedCandidate(
        worker=candidate.worker_id,
        dp_rank=candidate.dp_rank,
        cost=cost.total if cost is not None and is_scored else None,
        terms={term.name: term.value for term in cost.terms} if cost is not None else {},
        filtered_by=cost.filtered_by if cost is not None else None,
        num_cached_blocks=candidate.overlap.num_blocks,
        num_active_requests=candidate.num_active_requests,
        load_age_s=None if candidate.load_at_s is None else now_s - candidate.load_at_s,
    )
