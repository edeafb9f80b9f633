"""Scorers: what it would cost to give the request to a candidate."""

from __future__ import annotations

from dynamo_sdk.interfaces import Candidate, CostTerm, RoutingContext, RoutingRequest
from dynamo_sdk.types import LoadSnapshot


def active_requests(request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> CostTerm:
    """Requests that this router has on the worker: never out of date, but blind to other frontends."""
    return CostTerm("active_requests", float(candidate.num_active_requests))


class OtherRequests:
    """Requests that the worker reports beyond ours: those of other frontends.

    A report is a little out of date and counts ours too, hence the difference, at least 0; together with
    ``active_requests`` the larger of the two numbers counts. A report older than ``max_age_s`` says nothing.
    """

    def __init__(self, *, max_age_s: float) -> None:
        self._max_age_s = max_age_s

    def __call__(self, request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> CostTerm:
        load = fresh_load(candidate, context.now_s, self._max_age_s)
        num_reported = load.num_running + load.num_waiting if load else 0
        return CostTerm("other_requests", float(max(0, num_reported - candidate.num_active_requests)))


class WaitingRequests:
    """Requests that the worker reports as not yet running, times ``weight``: a queue means that its batch
    or its memory is full, so the next request will wait whatever the count of requests says."""

    def __init__(self, *, weight: float, max_age_s: float) -> None:
        self._weight = weight
        self._max_age_s = max_age_s

    def __call__(self, request: RoutingRequest, candidate: Candidate, context: RoutingContext) -> CostTerm:
        load = fresh_load(candidate, context.now_s, self._max_age_s)
        return CostTerm("waiting_requests", self._weight * load.num_waiting if load else 0.0)


def fresh_load(candidate: Candidate, now_s: float, max_age_s: float) -> LoadSnapshot | None:
    """The candidate's report, unless it is missing or older than ``max_age_s``."""
    at_s = candidate.load_at_s
    return candidate.load if at_s is not None and now_s - at_s <= max_age_s else None
