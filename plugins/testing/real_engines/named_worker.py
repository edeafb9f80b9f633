"""A stage for tests: only the worker that the client names may take the request."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, RoutingContext, RoutingRequest


def only_named(
    request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
) -> Sequence[Candidate]:
    if request.worker_id is None:
        return candidates
    return [candidate for candidate in candidates if candidate.worker_id == request.worker_id]
