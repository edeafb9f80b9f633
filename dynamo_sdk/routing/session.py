"""``session``: what belongs together goes to one worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.interfaces import (
    Candidate,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.types import Role, WorkerId

from .config import SessionConfig
from .naming import router_named


@dataclass(slots=True)
class _Binding:
    worker_id: WorkerId
    dp_rank: int
    until_s: float


class SessionRouter(Router):
    """A session stays with its worker for ``ttl_s`` after its last request. Its first request, one whose
    worker is no candidate (gone, or failed it before), and one without a session go where the router
    ``otherwise`` says; the session is then bound there. At most ``max_sessions`` are remembered, the last
    used ones."""

    def __init__(self, config: SessionConfig | None = None) -> None:
        config = config or SessionConfig()
        self._ttl_s = config.ttl_s
        self._max_sessions = config.max_sessions
        self._otherwise = router_named(config.otherwise)
        self._bindings: OrderedDict[tuple[Role, str], _Binding] = OrderedDict()
        self.uses_overlap = self._otherwise.uses_overlap

    @property
    def num_sessions(self) -> int:
        return len(self._bindings)

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        if request.session is None:
            return self._otherwise.select(request, candidates, context)
        self._forget_old(context.now_s)
        key = (request.role, request.session)
        bound = self._bindings.get(key)
        if bound is not None and any(
            candidate.worker_id == bound.worker_id and candidate.dp_rank == bound.dp_rank
            for candidate in candidates
        ):
            bound.until_s = context.now_s + self._ttl_s
            self._bindings.move_to_end(key)
            return RoutingDecision(
                worker_id=bound.worker_id, dp_rank=bound.dp_rank, reason="the session is bound to it"
            )
        decision = self._otherwise.select(request, candidates, context)
        until_s = context.now_s + self._ttl_s
        self._bindings[key] = _Binding(decision.worker_id, decision.dp_rank, until_s)
        self._bindings.move_to_end(key)
        if len(self._bindings) > self._max_sessions:
            self._bindings.popitem(last=False)
        return decision

    def observe(self, fact: RouterFact, now_s: float) -> None:
        self._otherwise.observe(fact, now_s)

    def _forget_old(self, now_s: float) -> None:
        """Used last is over last, so those that are over are in front."""
        while self._bindings:
            key = next(iter(self._bindings))
            if self._bindings[key].until_s > now_s:
                return
            del self._bindings[key]
