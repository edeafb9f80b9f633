"""Requests that wait in the frontend while every worker that could take them is full.

Off unless ``max_prefill_tokens`` is set: engines have queues of their own. What waits here can still be given
to whoever is free first, and in a fair order; what waits in an engine cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dynamo_sdk.flow import AdmissionLimits, AdmissionQueue, Route, Waiting
from dynamo_sdk.types import GenerateRequest, Role

from .openai.backend import RoutingHints
from .pools import Pools

Pool = tuple[str, Role]


@dataclass(slots=True)
class _Line:
    queue: AdmissionQueue
    waiting: dict[str, Callable[[], None]] = field(default_factory=dict)


class Admission:
    """A worker is full when it has more than ``max_prefill_tokens`` prompt tokens to compute. All methods on
    one event loop."""

    def __init__(self, pools: Pools, max_prefill_tokens: int | None, limits: AdmissionLimits) -> None:
        self._pools = pools
        self._max_prefill_tokens = max_prefill_tokens
        self._limits = limits
        self._lines: dict[Pool, _Line] = {}
        self._is_letting_in = self._has_news = False

    @property
    def num_waiting(self) -> int:
        return sum(len(line.queue) for line in self._lines.values())

    def must_wait(
        self,
        model: str,
        ask: Route,
        request: GenerateRequest,
        hints: RoutingHints,
        go: Callable[[], None],
    ) -> bool:
        """False: go on. True: ``go`` is called when there is room and it is its turn, unless it leaves.
        Nobody overtakes those who wait. Work that has begun, or has failed elsewhere, does not wait. Raises
        ``Overloaded``."""
        if self._max_prefill_tokens is None or ask.can_wait or ask.excluded or ask.pool is Role.DECODE:
            return False
        pool = (model, ask.pool)
        line = self._lines.get(pool)
        if line is None:
            if not self._is_full(pool):
                return False
            line = self._lines[pool] = _Line(AdmissionQueue(self._limits))
        line.queue.put(
            Waiting(
                request_id=request.request_id,
                tenant=hints.tenant or "",
                priority=request.priority,
                cost=ask.num_tokens,
            )
        )
        line.waiting[request.request_id] = go
        return True

    def leave(self, request_id: str) -> None:
        """It does not want to go any more. Idempotent, also for one that never waited."""
        for pool, line in list(self._lines.items()):
            if line.queue.remove(request_id):
                del line.waiting[request_id]
                self._forget_if_empty(pool, line)

    def let_in(self) -> None:
        """Something has changed: whoever has room now goes."""
        self._has_news = True
        if self._is_letting_in:
            return
        self._is_letting_in = True
        try:
            while self._has_news and self._lines:  # who goes makes news, also for lines that were looked at
                self._has_news = False
                for pool, line in list(self._lines.items()):
                    while line.queue and not self._is_full(pool):
                        request = line.queue.next()
                        assert request is not None
                        line.waiting.pop(request.request_id)()
                    self._forget_if_empty(pool, line)
        finally:
            self._is_letting_in = False

    def _forget_if_empty(self, pool: Pool, line: _Line) -> None:
        """There may be another line by now: whoever went may have brought others to leave and to come."""
        if not line.queue and self._lines.get(pool) is line:
            del self._lines[pool]

    def _is_full(self, pool: Pool) -> bool:
        """Every worker; a pool without workers is not full, it fails."""
        limit = self._max_prefill_tokens
        candidates = self._pools.pool(*pool).candidates
        return bool(candidates) and all(
            limit is not None and candidate.num_prefill_tokens + candidate.num_other_prefill_tokens > limit
            for candidate in candidates
        )
