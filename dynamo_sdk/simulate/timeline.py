"""``Timeline``: what happens when, in virtual time. Nothing waits; the clock jumps from moment to moment."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count


class Order(IntEnum):
    """What comes first in one moment: steps end, their news arrive, requests come, steps begin."""

    END = 0
    NEWS = 1
    ARRIVAL = 2
    BEGIN = 3


class Timeline:
    """Moments of equal time and order come as they were set. ``now_s`` starts at 0."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._moments: list[tuple[float, int, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, at_s: float, order: Order, action: Callable[[], None]) -> None:
        """Call ``action`` at ``at_s``, or now where that is over."""
        heappush(self._moments, (max(at_s, self.now_s), order, next(self._numbers), action))

    def run(self) -> None:
        """Until nothing is left."""
        moments = self._moments
        while moments:
            self.now_s, _, _, action = heappop(moments)
            action()
