"""What a worker measures, typed; every series carries which worker it is."""

from __future__ import annotations

from prometheus_client import Counter

from . import definitions as d
from .histogram import Histogram
from .kv_tiers import TierMetrics
from .registry import MetricRegistry

ENGINE = "engine"
"""The label ``back_end`` of transfers that an engine did by itself."""


class WorkerMetrics:
    """One per worker process. Counters only grow, gauges are set to what is now."""

    def __init__(self, *, service: str, worker_id: str, role: str) -> None:
        registry = self._registry = MetricRegistry(d.COMPONENT_METRICS + d.KVBM_METRICS)
        worker = (service, worker_id, role)
        self.tiers = TierMetrics(registry, worker)
        self.succeeded = registry.counter(d.COMPONENT_REQUESTS, *worker, "success")
        self.failed = registry.counter(d.COMPONENT_REQUESTS, *worker, "error")
        self.cancelled = registry.counter(d.COMPONENT_REQUESTS, *worker, "cancelled")
        self.inflight = registry.gauge(d.COMPONENT_INFLIGHT, *worker)
        self.duration_s = registry.histogram(d.COMPONENT_DURATION, *worker)
        self.prompt_tokens = registry.counter(d.COMPONENT_PROMPT_TOKENS, *worker)
        self.cached_prompt_tokens = registry.counter(d.COMPONENT_CACHED_TOKENS, *worker)
        self.prefill_tokens_computed = registry.counter(d.COMPONENT_PREFILL_TOKENS, *worker)
        self.decode_tokens = registry.counter(d.COMPONENT_DECODE_TOKENS, *worker)
        self._worker = worker
        self._transfers: dict[str, tuple[Counter, Histogram]] = {}
        self.active_blocks = registry.gauge(d.COMPONENT_ACTIVE_BLOCKS, *worker)
        self.total_blocks = registry.gauge(d.COMPONENT_TOTAL_BLOCKS, *worker)
        self.running = registry.gauge(d.COMPONENT_RUNNING, *worker)
        self.waiting = registry.gauge(d.COMPONENT_WAITING, *worker)

    def transferred(self, back_end: str, num_bytes: int, seconds: float) -> None:
        """The KV of one request came from another worker. ``back_end`` empty: by the engine's own means."""
        if back_end not in self._transfers:
            labels = (*self._worker, back_end or ENGINE)
            self._transfers[back_end] = (
                self._registry.counter(d.COMPONENT_KV_TRANSFER_BYTES, *labels),
                self._registry.histogram(d.COMPONENT_KV_TRANSFER_SECONDS, *labels),
            )
        moved, took = self._transfers[back_end]
        moved.inc(num_bytes)
        took.observe(seconds)

    def render(self) -> bytes:
        """Prometheus text of this worker alone; ``merge_texts`` joins several."""
        return self._registry.render()
