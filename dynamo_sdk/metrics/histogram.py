"""A histogram that costs a quarter of prometheus_client's per observation, for what is counted per token.

It is written on one thread only, so it takes no lock, and its bucket is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from .definitions import Metric


class Histogram:
    """The child of one set of label values."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """``count`` observations of the same value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def cumulative(self) -> tuple[list[int], float]:
        """Observations up to each bound and in all, and the sum of all."""
        totals: list[int] = []
        total = 0
        for count in self._counts:
            total += count
            totals.append(total)
        return totals, self._sum


class HistogramFamily(Collector):
    """All children of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Histogram] = {}
        self._names = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]

    def labels(self, *values: str) -> Histogram:
        if len(values) != len(self._metric.labels):
            raise ValueError(f"{self._metric.name} has the labels {self._metric.labels}, got {values}")
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Histogram(self._metric.buckets)
        return child

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for values, child in self._children.items():
            totals, sum_value = child.cumulative()
            buckets = [(name, float(total)) for name, total in zip(self._names, totals, strict=True)]
            family.add_metric(values, buckets, sum_value)
        yield family
