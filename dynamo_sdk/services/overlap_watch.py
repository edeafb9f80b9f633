"""Is what routers are told of caches true? Says so when it is not: nothing here is silently off.

Two questions, once a second: do the KV events of each worker arrive, and do engines find as many cached
tokens as the index said. The answers are in the book (which then guesses better), in three metrics, in
``/health`` and, when they are bad, in one line of the log.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.routing.seats import Predictions
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.types import Role, WorkerId

from .kv_feed import KVFeed, KVFeedStatistics
from .shadow_meter import ShadowMeter

logger = logging.getLogger(__name__)

CHECK_S = 1.0
GRACE_S = 30.0
MIN_REQUESTS = 50
MAX_ERROR = 0.25
"""Of the larger of the two numbers, over the last ``MIN_REQUESTS`` requests or more."""


class OverlapWatch:
    """``start`` once there is a loop; ``close`` at the end.

    ``is_misled``: whether a worker's events are known to be of no use; then its cache is guessed, as if there
    were none. ``needs_events``: whether choices depend on what this worker holds; only then is one that
    publishes no events a warning."""

    def __init__(
        self,
        events: KVFeed,
        book: CandidateBook,
        clock: Clock,
        metrics: FrontendMetrics | None,
        shadows: ShadowMeter | None = None,
        is_misled: Callable[[WorkerId], bool] = lambda _: False,
        needs_events: Callable[[WorkerId], bool] = lambda _: True,
    ) -> None:
        self._events = events
        self._book = book
        self._clock = clock
        self._metrics = metrics
        self._shadows = shadows
        self._is_misled = is_misled
        self._needs_events = needs_events
        self._silent_since_s: dict[WorkerId, float] = {}
        self._faults: dict[WorkerId, dict[str, int]] = {}
        self._counted: dict[tuple[str, Role], Predictions] = {}
        self._judged: dict[tuple[str, Role], Predictions] = {}
        self._is_off: dict[tuple[str, Role], bool] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Again: nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def describe(self, model: str) -> str:
        """For ``/health``: how much of what routers are told of this model comes from events, and how true
        it was."""
        feeds = self._events.statistics().values()
        text = f"KV events from {sum(feed.is_live for feed in feeds)} of {len(feeds)} workers"
        for pool in self._pools(model):
            seen = self._book.predictions(pool)
            if seen.num_requests:
                text += f", {pool[1]} cached tokens predicted {seen.num_predicted_tokens}"
                text += f" and found {seen.num_actual_tokens}"
                text += " (they disagree)" if self._is_off.get(pool) else ""
        return text

    def check(self) -> None:
        """Once."""
        self._check_events(self._clock.now_s())
        for key in self._book.pools:
            if isinstance(key, tuple):
                self._check_predictions(key)
        if self._shadows is not None:
            self._shadows.count()

    async def _watch(self) -> None:
        while True:
            try:
                self.check()
            except Exception:  # whoever watches over silence must not fall silent
                logger.exception("what routers predict could not be checked; trying again")
            await self._clock.sleep(CHECK_S)

    def _pools(self, model: str) -> list[tuple[str, Role]]:
        return [key for key in self._book.pools if isinstance(key, tuple) and key[0] == model]

    def _check_events(self, now_s: float) -> None:
        statistics = self._events.statistics()
        for worker_id, feed in statistics.items():
            self._book.hears_events(worker_id, feed.is_live and not self._is_misled(worker_id))
            since_s = self._silent_since_s.setdefault(worker_id, now_s)
            if feed.is_live:
                self._silent_since_s[worker_id] = math.inf
            elif now_s - since_s >= GRACE_S and (feed.publishes or self._needs_events(worker_id)):
                self._silent_since_s[worker_id] = math.inf
                logger.warning(
                    "no KV events from %s for %.0f s: its cache is guessed from what was sent to it",
                    worker_id, GRACE_S,
                )  # fmt: skip
            self._count_faults(worker_id, feed)
        for worker_id in [known for known in self._silent_since_s if known not in statistics]:
            del self._silent_since_s[worker_id], self._faults[worker_id]

    def _count_faults(self, worker_id: WorkerId, feed: KVFeedStatistics) -> None:
        now = {
            "break": feed.num_breaks,
            "gap": feed.num_gaps,
            "restart": feed.num_restarts,
            "misfit": feed.num_misfits,
        }
        before = self._faults.get(worker_id, {})
        self._faults[worker_id] = now
        for fault, num_now in now.items():
            # Gaps and restarts count from 0 again where a reader begins anew.
            num_new = max(0, num_now - before.get(fault, 0))
            if num_new and self._metrics is not None:
                self._metrics.count_kv_event_faults(fault, num_new)

    def _check_predictions(self, pool: tuple[str, Role]) -> None:
        now = self._book.predictions(pool).copy()
        counted = now.since(self._counted.get(pool))
        self._counted[pool] = now
        if self._metrics is not None and counted.num_requests:
            metrics = self._metrics.model(pool[0])
            metrics.predicted_cached_tokens.inc(counted.num_predicted_tokens)
            metrics.actual_cached_tokens.inc(counted.num_actual_tokens)
        recent = now.since(self._judged.get(pool))
        if recent.num_requests < MIN_REQUESTS:
            return
        self._judged[pool] = now
        was_off, is_off = self._is_off.get(pool, False), recent.error > MAX_ERROR
        self._is_off[pool] = is_off
        if is_off and not was_off:
            logger.warning(
                "model %s: in the last %d %s requests, %d prompt tokens should have been cached and %d were; "
                "routing by overlap is off by as much", pool[0], recent.num_requests, pool[1],
                recent.num_predicted_tokens, recent.num_actual_tokens,
            )  # fmt: skip
