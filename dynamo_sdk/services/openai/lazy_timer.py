"""A timer that is moved with every request and runs out almost never.

Setting and cancelling a timer of the loop costs more than a microsecond, several times per request. This one
touches the loop's only when that would run too late; running too early, it looks at the time and waits on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class LazyTimer:
    """Calls back once, ``delay_s`` after the last ``start``, unless it is stopped before. ``close`` it."""

    __slots__ = ("_callback", "_due_s", "_handle")

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None
        self._callback: Callable[[], None] | None = None
        self._due_s = 0.0

    def start(self, delay_s: float, callback: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._callback, self._due_s = callback, loop.time() + delay_s
        if self._handle is not None:
            if self._handle.when() <= self._due_s:
                return
            self._handle.cancel()
        self._handle = loop.call_at(self._due_s, self._fire)

    def stop(self) -> None:
        """Idempotent, as ``close`` is."""
        self._callback = None

    def close(self) -> None:
        self.stop()
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.cancel()

    def _fire(self) -> None:
        self._handle = None
        callback = self._callback
        if callback is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._due_s:
            self._handle = loop.call_at(self._due_s, self._fire)
            return
        self._callback = None
        callback()
