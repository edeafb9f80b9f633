"""``DeltaInbox``: from the tick in which tokens arrive to the task that writes the answer.

All choices of a request fill one inbox; the task takes everything at once, so that what has come in one
tick, or while the client was slow, leaves in one write.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol, Self

from .choice import Delta

MAX_WAITING = 256
"""Deltas that may wait for a slow client before its calls are paused."""


class PausableCall(Protocol):
    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class DeltaInbox:
    """Filled by ``put`` and ``fail``, which never wait; emptied by one task. A context manager that closes
    ``calls``, which fill it."""

    def __init__(self) -> None:
        self.calls: list[PausableCall] = []
        self._deltas: list[tuple[int, Delta]] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False

    def put(self, index: int, delta: Delta) -> None:
        """``delta`` belongs to choice ``index``."""
        deltas = self._deltas
        deltas.append((index, delta))
        if len(deltas) == 1:
            self._wake()
        elif len(deltas) > MAX_WAITING and not self._is_paused:
            self._is_paused = True
            for call in self.calls:
                call.pause()

    def fail(self, error: Exception) -> None:
        """Comes out behind what is there; the first one counts."""
        self._error = self._error or error
        self._wake()

    async def take(self) -> list[tuple[int, Delta]]:
        """``(choice index, delta)`` in the order of arrival, at least one; waits for it. The last delta of a
        choice has a finish reason. Raises what ``fail`` was given."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
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

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
