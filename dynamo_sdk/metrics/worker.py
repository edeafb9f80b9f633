"""What a worker measures, typed; every series carries which worker it is."""

from __future__ import annotations

from . import definitions as d
from .kv_tiers import TierMetrics
from .registry import MetricRegistry


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
        self.kv_bytes_fetched = registry.counter(d.COMPONENT_KV_TRANSFER_BYTES, *worker)
        self.kv_transfer_s = registry.histogram(d.COMPONENT_KV_TRANSFER_SECONDS, *worker)
        self.active_blocks = registry.gauge(d.COMPONENT_ACTIVE_BLOCKS, *worker)
        self.total_blocks = registry.gauge(d.COMPONENT_TOTAL_BLOCKS, *worker)
        self.running = registry.gauge(d.COMPONENT_RUNNING, *worker)
        self.waiting = registry.gauge(d.COMPONENT_WAITING, *worker)

    def render(self) -> bytes:
        """Prometheus text of this worker alone; ``merge_texts`` joins several."""
        return self._registry.render()
