"""A clock that is fine enough to measure with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dynamo_sdk.runtime.clock import Clock, TimerHandle


class FineClock(Clock):
    """Nanoseconds, where uvloop's own clock counts milliseconds. Timers are still the event loop's."""

    def now_s(self) -> float:
        return time.perf_counter()

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        return asyncio.get_running_loop().call_later(max(0.0, when_s - self.now_s()), callback)
