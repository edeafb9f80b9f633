"""``StoreThread``: calls to a KV store from threads that must not wait for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

CALL_TIMEOUT_S = 60.0
ENDING_TIMEOUT_S = 10.0
"""A call that was cancelled returns once no thread of the store touches its memory any more; on a medium that
hangs, such as a network disk without its server, that is never."""


class StoreThread:
    """An event loop on a thread of its own. Calls may come from any threads.

    A call that does not even end when it is cancelled is left behind, with the memory that it was given.
    Until it returns nothing more is asked of the store: at most one call of each caller is left behind.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._left_behind: set[Future[Any]] = set()
        threading.Thread(target=self._loop.run_forever, name="kv-store", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Returns after ``CALL_TIMEOUT_S`` and ``ENDING_TIMEOUT_S`` at the latest. Raises what the work
        raises, and ``TimeoutError``."""
        if self._left_behind:
            work.close()
            raise TimeoutError("an earlier call has not returned")
        future = asyncio.run_coroutine_threadsafe(_limited(work), self._loop)
        try:
            return future.result(CALL_TIMEOUT_S + ENDING_TIMEOUT_S)
        except TimeoutError:
            if future.done():
                raise
            self._left_behind.add(future)
            future.add_done_callback(self._left_behind.discard)
            raise TimeoutError("it does not return, and is asked nothing until it does") from None

    def close(self) -> None:
        """Idempotent; ends no call."""
        self._loop.call_soon_threadsafe(self._loop.stop)


async def _limited(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"it took more than {CALL_TIMEOUT_S:g} s") from None
