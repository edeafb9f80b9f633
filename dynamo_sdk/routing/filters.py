"""Filters: who may take the request."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, RoutingContext, RoutingRequest


class Sample:
    """Keeps ``size`` candidates drawn by chance; all of them when there are no more."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> Sequence[Candidate]:
        if len(candidates) <= self._size:
            return candidates
        return context.rng.sample(candidates, self._size)
