"""A function is router enough.

::

    @router_from_function
    def emptiest(request, candidates, context):
        return min(candidates, key=lambda candidate: candidate.num_active_requests)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynamo_sdk.interfaces import Candidate, Router, RoutingContext, RoutingDecision, RoutingRequest

Choose = Callable[[RoutingRequest, Sequence[Candidate], RoutingContext], Candidate]


def router_from_function(choose: Choose) -> type[Router]:
    """A router class, without configuration, whose decisions ``choose`` makes; its name is the reason
    that they carry. Name the class in a ``RouterDescriptor`` like any other."""

    class FunctionRouter(Router):
        def select(
            self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
        ) -> RoutingDecision:
            chosen = choose(request, candidates, context)
            return RoutingDecision(worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, reason=choose.__name__)

    FunctionRouter.__name__ = choose.__name__
    FunctionRouter.__qualname__ = choose.__qualname__
    FunctionRouter.__module__ = choose.__module__
    FunctionRouter.__doc__ = choose.__doc__
    return FunctionRouter
