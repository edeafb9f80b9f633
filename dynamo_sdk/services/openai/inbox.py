"""``DeltaInbox``: from the tick in which tokens arrive to the call that writes them.

All choices of a request fill one inbox. What has come in one tick, or while the client was slow, is given on
in one call, and leaves in one write. No task wakes up for it: the request's own only waits for the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from .choice import Delta

MAX_WAITING = 256
"""Deltas that may wait for a slow client before its calls are paused."""


class PausableCall(Protocol):
    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


Consume = Callable[[list[tuple[int, Delta]]], bool]
"""Takes ``(choice index, delta)`` in the order of arrival, at least one. Returns whether more is wanted."""


class DeltaInbox:
    """Filled by ``put`` and ``fail``, which never wait; emptied by ``deliver``. A context manager that closes
    ``calls``, which fill it."""

    def __init__(self) -> None:
        self.calls: list[PausableCall] = []
        self._deltas: list[tuple[int, Delta]] = []
        self._error: Exception | None = None
        self._consume: Consume | None = None
        self._end: asyncio.Future[None] | None = None  # of the delivery under way
        self._is_paused = False

    def put(self, index: int, delta: Delta) -> None:
        """``delta`` belongs to choice ``index``."""
        deltas = self._deltas
        deltas.append((index, delta))
        if len(deltas) == 1:
            self._deliver_soon()
        elif len(deltas) > MAX_WAITING and not self._is_paused:
            self._is_paused = True
            for call in self.calls:
                call.pause()

    def fail(self, error: Exception) -> None:
        """Comes out behind what is there; the first one counts."""
        self._error = self._error or error
        self._deliver_soon()

    async def deliver(self, consume: Consume) -> None:
        """Give ``consume`` what is there, and in each tick what has come in it, until it wants no more.
        Raises what ``fail`` was given, and what ``consume`` raises. One delivery at a time."""
        self._consume, self._end = consume, asyncio.get_running_loop().create_future()
        try:
            self._deliver()
            await self._end
        finally:
            self._consume = self._end = None

    def _deliver_soon(self) -> None:
        if self._consume is not None:
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        consume, end = self._consume, self._end
        if consume is None or end is None or end.done():
            return
        error: Exception | None = None
        try:
            wants_more = not self._deltas or consume(self._take())
        except Exception as raised:
            wants_more, error = False, raised
        if end.done():
            return
        if wants_more:
            error = self._error
        if error is not None:
            end.set_exception(error)
        elif not wants_more:
            end.set_result(None)

    def _take(self) -> list[tuple[int, Delta]]:
        deltas, self._deltas = self._deltas, []
        if self._is_paused:
            self._is_paused = False
            for call in self.calls:
                call.resume()
        return deltas

    def close(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
