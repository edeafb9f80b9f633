"""Time as an object: the real one, and a twin that stands still until a test or a simulation moves it.

Everything in ``runtime`` that waits (deadlines, leases, back-off, simulated delays) asks a ``Clock``,
so that a whole graph can run in virtual time.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol


class TimerHandle(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None: ...


class Clock(ABC):
    """Monotonic seconds, and callbacks at a moment."""

    @abstractmethod
    def now_s(self) -> float: ...

    @abstractmethod
    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Run ``callback`` once, on the event loop, not before ``when_s``."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        return self.call_at(self.now_s() + delay_s, callback)

    async def wait(self, awaited: asyncio.Future[Any], until_s: float | None) -> None:
        """Return when ``awaited`` is done, however, or it is ``until_s``; never cancels it."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = None if until_s is None else self.call_at(until_s, lambda: _cancel(over))
        try:
            await asyncio.wait([awaited, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if timer is not None:
                timer.cancel()

    async def sleep(self, delay_s: float) -> None:
        """Return ``delay_s`` from now; zero or less still lets other tasks run once."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        over = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay_s, lambda: None if over.done() else over.set_result(None))
        try:
            await over
        finally:
            timer.cancel()


class SystemClock(Clock):
    """The running event loop's clock: every loop counts by the monotonic one, though uvloop reads it once a
    turn and in whole milliseconds."""

    def now_s(self) -> float:
        return time.monotonic()

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        return asyncio.get_running_loop().call_at(when_s, callback)


def _cancel(future: asyncio.Future[None]) -> None:
    future.cancel()


class _ManualTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock(Clock):
    """Stands still until ``advance`` moves it; callbacks run in order of their time."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._order = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (when_s, next(self._order), timer))
        return timer

    def next_timer_s(self) -> float | None:
        """When the next callback is due, or None."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance_nowait(self, by_s: float) -> None:
        """Move time and run what is due, without letting tasks run in between."""
        until_s = self._now_s + by_s
        while (due_s := self.next_timer_s()) is not None and due_s <= until_s:
            self._now_s = max(self._now_s, due_s)
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()
        self._now_s = until_s

    async def advance(self, by_s: float) -> None:
        """Move time step by step; after each due callback every task that can run does."""
        until_s = self._now_s + by_s
        await settle()
        while (due_s := self.next_timer_s()) is not None and due_s <= until_s:
            self.advance_nowait(max(0.0, due_s - self._now_s))
            await settle()
        self._now_s = max(self._now_s, until_s)


async def settle(num_rounds: int = 50) -> None:
    """Give every runnable task its turns. For tests and simulation: a chain of ``num_rounds`` wake-ups
    is more than any path in the runtime needs."""
    for _ in range(num_rounds):
        await asyncio.sleep(0)
