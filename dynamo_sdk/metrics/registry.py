"""A registry of its own per process object, holding the metrics it was made for.

``counter(metric, ...)`` and its siblings return the child for these label values; keep it. A look-up costs
three times what an increment does.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from .definitions import Metric, MetricKind
from .histogram import Histogram, HistogramFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricRegistry:
    """Raises ``KeyError`` for a metric it does not hold, ``ValueError`` for wrong label values."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, HistogramFamily] = {}
        for metric in metrics:
            name, help_, labels = metric.name, metric.help, metric.labels
            if metric.kind is MetricKind.COUNTER:
                self._counters[name] = Counter(name, help_, labels, registry=self._registry)
            elif metric.kind is MetricKind.GAUGE:
                self._gauges[name] = Gauge(name, help_, labels, registry=self._registry)
            else:
                family = self._histograms[name] = HistogramFamily(metric)
                self._registry.register(family)

    def counter(self, metric: Metric, *labels: str) -> Counter:
        parent = self._counters[metric.name]
        return parent.labels(*labels) if metric.labels else parent

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        parent = self._gauges[metric.name]
        return parent.labels(*labels) if metric.labels else parent

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        return self._histograms[metric.name].labels(*labels)

    def render(self) -> bytes:
        """Prometheus text, one block per metric."""
        return generate_latest(self._registry)
