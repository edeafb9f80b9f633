"""Medians, ratios with their spread, and slopes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ratio:
    """``median`` of the repetitions' ratios, and the lowest and highest of them."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f}..{self.highest:.2f})"


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Repetition by repetition: the n-th of ours over the n-th of theirs, which ran next to it."""
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values against {len(theirs)}")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Theil-Sen: the median of the slopes between all pairs, which a few outliers cannot move."""
    pairs = [
        (ys[j] - ys[i]) / (xs[j] - xs[i])
        for i in range(len(xs))
        for j in range(i + 1, len(xs))
        if xs[i] != xs[j]
    ]
    if not pairs:
        raise ValueError("a slope needs two different x")
    return statistics.median(pairs)
