"""``PreciseClock``: live time whose callbacks are late by microseconds, not by milliseconds.

Event loops wait in whole milliseconds, which would show in every inter-token gap of a simulated step of
six. Linux has timers of nanoseconds that are file descriptors, so the loop can wait for one as it does for
a socket. Elsewhere the loop's own clock must do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable

from dynamo_sdk.runtime.clock import Clock, TimerHandle

_TFD_TIMER_ABSTIME = 1
_NS_PER_S = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _TimerSpec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class _Timer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class PreciseClock(Clock):
    """Belongs to one event loop from the first callback on; ``close`` it there.

    Raises ``OSError`` when the system has no timer to give.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._is_next_tick_ours = False  # ``_run_due`` is on the loop's list already

    def now_s(self) -> float:
        return time.monotonic()

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._on_alarm)
        timer = _Timer(callback)
        heapq.heappush(self._timers, (when_s, next(self._order), timer))
        if self._timers[0][2] is timer:
            self._wait_for_first()
        return timer

    def close(self) -> None:
        """What has not run yet never will. Idempotent."""
        self._timers.clear()
        if self._fd >= 0:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _wait_for_first(self) -> None:
        """Set the one kernel timer to the first callback; one that is due needs none."""
        first_s = self._timers[0][0]
        if first_s <= time.monotonic():
            assert self._loop is not None
            if not self._is_next_tick_ours:
                self._is_next_tick_ours = True
                self._loop.call_soon(self._run_due)
            return
        seconds, nanoseconds = divmod(int(first_s * _NS_PER_S), _NS_PER_S)
        spec = _TimerSpec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _on_alarm(self) -> None:
        with contextlib.suppress(BlockingIOError):  # set anew since it woke the loop
            os.read(self._fd, 8)
        self._run_due()

    def _run_due(self) -> None:
        self._is_next_tick_ours = False
        until_s, newest = time.monotonic(), next(self._order)
        try:
            while self._timers:
                when_s, number, timer = self._timers[0]
                if when_s > until_s or number > newest:  # what callbacks add waits for the next tick
                    break
                heapq.heappop(self._timers)
                if timer.callback is not None:
                    timer.callback()
        finally:  # also when a callback raised: the others still run
            if self._timers and self._fd >= 0:
                self._wait_for_first()
