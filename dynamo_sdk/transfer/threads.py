"""Blocking work on a thread that is never left alone.

A cancelled ``asyncio.to_thread`` returns while its thread still copies, here into blocks that the
caller is about to give to somebody else. ``run_to_end`` asks the work to stop and waits until it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import anyio

T = TypeVar("T")


async def run_to_end(threads: Executor, work: Callable[[], T], abort: Callable[[], None]) -> T:
    """Return what ``work`` returns. When cancelled: call ``abort`` (on the loop; it makes ``work`` return
    soon), wait for the end of ``work``, then let the cancellation through, whatever ``work`` did."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if future.done():
            future.cancelled() or future.exception()  # looked at, so that asyncio does not report it as lost
            raise
        with anyio.CancelScope(
            shield=True
        ):  # a cancelled scope above would wake us in every round of the loop
            while not future.done():
                abort()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
        future.cancelled() or future.exception()
        raise


def run_together(works: Sequence[Callable[[], None]], abort: Callable[[], None]) -> None:
    """Do all of ``works`` at once, the first on this thread, and return when all have ended. When one raises:
    call ``abort`` (it makes the others end soon), then raise what was raised first."""
    errors: list[Exception] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)
            abort()

    others = [threading.Thread(target=guarded, args=(work,), name="kv-fetch-lane") for work in works[1:]]
    for thread in others:
        thread.start()
    guarded(works[0])
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
