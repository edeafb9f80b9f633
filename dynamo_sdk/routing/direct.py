"""``direct``: the worker that the request names."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import Candidate, RoutingContext, RoutingDecision, RoutingRequest

from .policies import LeastLoadedRouter


class DirectRouter(LeastLoadedRouter):
    """For whoever decides elsewhere: a test, or a router in front. A request that names no worker goes to the
    least busy one. Raises ``InvalidRequest`` when the one that is named is no candidate."""

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        if request.worker_id is None:
            return super().select(request, candidates, context)
        named = [candidate for candidate in candidates if candidate.worker_id == request.worker_id]
        if not named:
            there = ", ".join(sorted({candidate.worker_id for candidate in candidates}))
            raise InvalidRequest(
                f"no worker {request.worker_id!r} can take the request (there are {there})",
                param="dynamo.worker",
            )
        chosen = min(named, key=lambda candidate: candidate.num_active_requests)
        return RoutingDecision(
            worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, reason="the request names it"
        )
