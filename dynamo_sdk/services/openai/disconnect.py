"""End the work of a request the moment its client goes away.

Sending to a client that has gone succeeds silently, so the only sign is in ``receive``: a small task
watches it and cancels the request's own task, which closes its generators on the way out.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from .exchange import ClientGone, Exchange


class CancelOnDisconnect:
    """``async with CancelOnDisconnect(exchange):`` raises ``ClientGone`` out of the block, once its own
    cleaning up is done. Enter after the body has been read."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._has_gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._num_cancels_before = task.cancelling()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        await self._exchange.wait_disconnect()
        if not self._exchange.is_answered:
            self._has_gone = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        if not self._has_gone:
            return
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            # The cancellation is on its way and must not reach whatever comes after.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if self._task.uncancel() <= self._num_cancels_before:
            raise ClientGone from error
