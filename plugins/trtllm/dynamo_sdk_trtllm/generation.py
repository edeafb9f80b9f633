"""``Generation``: one request inside TensorRT-LLM, read to its end or left so that nothing stays behind.

::

    left before the engine has it     nothing to do
    left while decode fetches KV      wait for the first token, then abort: an abort in the middle of the
                                      transfer would leak what both sides hold for it
    left at any later moment          abort
    after an abort                    read on until TensorRT-LLM has ended the request: its blocks are free
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

_log = logging.getLogger(__name__)

ABORT_TIMEOUT_S = 5.0
"""How long a request that is left waits for TensorRT-LLM to say that it has ended."""


class Generation:
    """``result`` is what ``generate_async`` returned. ``fetch_timeout_s``: of a decode leg with a
    ticket, how long its transfer may take."""

    def __init__(self, result: Any, *, fetch_timeout_s: float | None = None) -> None:
        self._result = result
        self._iterator: AsyncIterator[Any] = aiter(result)
        self._fetch_timeout_s = fetch_timeout_s
        self._has_begun = False
        self._has_ended = False
        self._is_aborted = False

    @property
    def is_fetching(self) -> bool:
        return self._fetch_timeout_s is not None and not self._has_begun

    async def outputs(self) -> AsyncGenerator[Any, None]:
        """TensorRT-LLM's outputs, the last one with ``finished``. Raises what TensorRT-LLM raises."""
        while not self._has_ended:
            output = await self._next()
            if output is None:
                return
            yield output

    def abort(self) -> None:
        """At once, whatever is under way: the engine is about to close."""
        if not self._has_ended and not self._is_aborted:
            self._is_aborted = True
            self._result.abort()

    async def leave(self) -> None:
        """Return when TensorRT-LLM holds nothing for the request any more, or does not answer. Idempotent."""
        with anyio.CancelScope(shield=True):
            if self.is_fetching and not self._has_ended:
                with anyio.move_on_after(self._fetch_timeout_s):
                    await self._next_or_none()
            self.abort()
            with anyio.move_on_after(ABORT_TIMEOUT_S) as waited:
                while not self._has_ended:
                    await self._next_or_none()
            if waited.cancelled_caught:
                _log.warning("TensorRT-LLM did not confirm an abort within %s s", ABORT_TIMEOUT_S)

    async def _next_or_none(self) -> Any:
        try:
            return await self._next()
        except Exception as error:
            _log.info("TensorRT-LLM ended a request that was left: %s", error)
            return None

    async def _next(self) -> Any:
        await checkpoint_if_cancelled()  # outputs that wait already would never let a cancellation in
        try:
            output = await anext(self._iterator)
        except StopAsyncIteration:
            self._has_ended = True
            return None
        except Exception:
            self._has_ended = True
            raise
        self._has_begun = True
        self._has_ended = bool(output.finished)
        return output
