"""What the tiers of one worker hold and did: totals that somebody else counted, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import definitions as d
from .definitions import Metric, MetricKind
from .registry import MetricRegistry

DROPPED, GONE = "dropped", "gone"
"""Reasons beside those of filters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierTotals:
    """Of one tier, since the start; ``num_queued``, ``num_blocks``, ``used_bytes`` and ``capacity_bytes`` are
    of now. ``num_skipped_blocks`` by reason."""

    num_lookup_blocks: int
    num_hit_blocks: int
    num_onboarded_blocks: int
    onboarded_bytes: int
    onboard_s: float
    num_offloaded_blocks: int
    offloaded_bytes: int
    offload_s: float
    num_evicted_blocks: int
    num_failed_blocks: int
    num_queued_blocks: int
    num_blocks: int
    used_bytes: int
    capacity_bytes: int | None
    num_skipped_blocks: Mapping[str, int] = field(default_factory=dict[str, int])


class TierMetrics:
    """``worker``: values of the labels ``service``, ``worker_id`` and ``role``."""

    def __init__(self, registry: MetricRegistry, worker: tuple[str, str, str]) -> None:
        self._registry = registry
        self._worker = worker
        self._totals: dict[tuple[str, ...], float] = {}

    def set_total(self, metric: Metric, total: float, *labels: str) -> None:
        """``metric`` stands at ``total`` now. ``labels``: those after the worker's."""
        values = (*self._worker, *labels)
        if metric.kind is MetricKind.GAUGE:
            self._registry.gauge(metric, *values).set(total)
            return
        before = self._totals.get((metric.name, *labels), 0.0)
        self._registry.counter(metric, *values).inc(max(0.0, total - before))
        self._totals[metric.name, *labels] = total

    def set_tier(self, name: str, totals: TierTotals) -> None:
        self.set_total(d.KVBM_LOOKUP_BLOCKS, totals.num_lookup_blocks, name)
        self.set_total(d.KVBM_HIT_BLOCKS, totals.num_hit_blocks, name)
        self.set_total(d.KVBM_ONBOARDED_BLOCKS, totals.num_onboarded_blocks, name)
        self.set_total(d.KVBM_ONBOARDED_BYTES, totals.onboarded_bytes, name)
        self.set_total(d.KVBM_ONBOARD_SECONDS, totals.onboard_s, name)
        self.set_total(d.KVBM_OFFLOADED_BLOCKS, totals.num_offloaded_blocks, name)
        self.set_total(d.KVBM_OFFLOADED_BYTES, totals.offloaded_bytes, name)
        self.set_total(d.KVBM_OFFLOAD_SECONDS, totals.offload_s, name)
        self.set_total(d.KVBM_EVICTED_BLOCKS, totals.num_evicted_blocks, name)
        self.set_total(d.KVBM_FAILED_BLOCKS, totals.num_failed_blocks, name)
        self.set_total(d.KVBM_QUEUED_BLOCKS, totals.num_queued_blocks, name)
        self.set_total(d.KVBM_BLOCKS, totals.num_blocks, name)
        self.set_total(d.KVBM_USED_BYTES, totals.used_bytes, name)
        if totals.capacity_bytes is not None:
            self.set_total(d.KVBM_CAPACITY_BYTES, totals.capacity_bytes, name)
        for reason, total in totals.num_skipped_blocks.items():
            self.set_total(d.KVBM_SKIPPED_BLOCKS, total, name, reason)
