"""What the frontend measures, typed; the clock is an argument."""

from __future__ import annotations

from enum import StrEnum

from . import definitions as d
from .registry import MetricRegistry

LEDGER_STAGES = ("tokenize", "route", "queue", "prefill", "transfer", "decode", "sdk")


class Outcome(StrEnum):
    """How a request ended."""

    SUCCESS = "success"
    REJECTED = "rejected"  # 4xx: the client's mistake, or more than we can take
    ERROR = "error"  # 5xx
    CANCELLED = "cancelled"  # the client left


class FrontendMetrics:
    """One per frontend, whose id is on every series. ``model`` must be one that exists: it is a label."""

    def __init__(self, *, worker_id: str = "") -> None:
        self._registry = MetricRegistry(d.FRONTEND_METRICS)
        self._worker_id = worker_id
        self._models: dict[str, ModelMetrics] = {}

    def model(self, name: str) -> ModelMetrics:
        metrics = self._models.get(name)
        if metrics is None:
            metrics = self._models[name] = ModelMetrics(self._registry, self._worker_id, name)
        return metrics

    def shadow(self, model: str, shadow: str) -> ShadowMetrics:
        """``shadow``: the name of a router that a deploy file gives."""
        return ShadowMetrics(self._registry, self._worker_id, model, shadow)

    def count_request(self, *, model: str, endpoint: str, outcome: Outcome) -> None:
        """``model`` is empty when the request named none that exists."""
        self._registry.counter(d.FRONTEND_REQUESTS, self._worker_id, model, endpoint, outcome.value).inc()

    def count_parity_check(self, *, model: str, verdict: str) -> None:
        """``verdict``: what came out of comparing one worker's block keys with the predicted ones."""
        self._registry.counter(d.ROUTER_PARITY_CHECKS, self._worker_id, model, verdict).inc()

    def count_kv_event_faults(self, fault: str, num_faults: int) -> None:
        """``fault``: one of those that the metric's help names."""
        self._registry.counter(d.ROUTER_KV_EVENT_FAULTS, self._worker_id, fault).inc(num_faults)

    def render(self) -> bytes:
        return self._registry.render()


class ShadowMetrics:
    """The children of one shadow router."""

    def __init__(self, registry: MetricRegistry, *labels: str) -> None:
        self.decisions = registry.counter(d.ROUTER_SHADOW_DECISIONS, *labels)
        self.different = registry.counter(d.ROUTER_SHADOW_DIFFERENT, *labels)
        self.failures = registry.counter(d.ROUTER_SHADOW_FAILURES, *labels)
        self.regret_s = registry.gauge(d.ROUTER_SHADOW_REGRET, *labels)


class ModelMetrics:
    """The children of one model, looked up once."""

    def __init__(self, registry: MetricRegistry, *labels: str) -> None:
        self.inflight = registry.gauge(d.FRONTEND_INFLIGHT, *labels)
        self.queued = registry.gauge(d.FRONTEND_QUEUED, *labels)
        self.duration_s = registry.histogram(d.FRONTEND_DURATION, *labels)
        self.ttft_s = registry.histogram(d.FRONTEND_TTFT, *labels)
        self.itl_s = registry.histogram(d.FRONTEND_ITL, *labels)
        self.input_tokens = registry.histogram(d.FRONTEND_INPUT_TOKENS, *labels)
        self.output_tokens = registry.histogram(d.FRONTEND_OUTPUT_TOKENS, *labels)
        self.stages_s = [
            registry.histogram(d.FRONTEND_STAGE_DURATION, *labels, stage) for stage in LEDGER_STAGES
        ]
        self.cached_tokens = registry.histogram(d.FRONTEND_CACHED_TOKENS, *labels)
        self.predicted_cached_tokens = registry.counter(d.ROUTER_PREDICTED_CACHED_TOKENS, *labels)
        self.actual_cached_tokens = registry.counter(d.ROUTER_ACTUAL_CACHED_TOKENS, *labels)
        self._migrations_before = registry.counter(d.FRONTEND_MIGRATIONS, *labels, "new_request")
        self._migrations_after = registry.counter(d.FRONTEND_MIGRATIONS, *labels, "ongoing_request")

    def count_migration(self, *, had_tokens: bool) -> None:
        (self._migrations_after if had_tokens else self._migrations_before).inc()

    def choice(self, *, received_s: float) -> ChoiceTimer:
        return ChoiceTimer(self, received_s)


class ChoiceTimer:
    """Token times of one choice. It is queued from its making to its first token or its end."""

    __slots__ = ("_is_queued", "_itl_s", "_last_s", "_metrics", "_received_s")

    def __init__(self, metrics: ModelMetrics, received_s: float) -> None:
        self._metrics = metrics
        self._received_s = received_s
        self._itl_s = metrics.itl_s
        self._last_s = 0.0
        self._is_queued = True
        metrics.queued.inc()

    def on_tokens(self, num_tokens: int, now_s: float) -> None:
        """``num_tokens`` arrived together at ``now_s``; their time is shared out evenly."""
        if num_tokens == 0:
            return
        if self._is_queued:
            self._leave_queue()
            self._metrics.ttft_s.observe(now_s - self._received_s)
            num_tokens -= 1
            self._last_s = now_s
            gap_s = 0.0
        else:
            gap_s = (now_s - self._last_s) / num_tokens
            self._last_s = now_s
        if num_tokens:
            self._itl_s.observe(gap_s, num_tokens)

    def close(self) -> None:
        """The choice has ended, however. Idempotent."""
        if self._is_queued:
            self._leave_queue()

    def _leave_queue(self) -> None:
        self._is_queued = False
        self._metrics.queued.dec()
