"""Questions to a slow place, in tasks of their own: whoever asks may leave before the answer comes.

A request that gives up on a lookup must not end it. The answer serves the next one, and a place that never
answers is only noticed by who waits until time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio

from dynamo_sdk.interfaces import CacheKey


class Lookups:
    """``ask`` finds out about one key and keeps the answer; it raises nothing. A key is asked about once at a
    time; questions beyond ``max_at_once`` are not asked."""

    def __init__(self, ask: Callable[[CacheKey], Awaitable[None]], max_at_once: int) -> None:
        self._ask = ask
        self._max_at_once = max_at_once
        self._asking: dict[CacheKey, asyncio.Task[None]] = {}

    async def wait(self, keys: Sequence[CacheKey]) -> None:
        """Return when ``ask`` is through with ``keys``."""
        tasks = [task for key in keys if (task := self._begin(key)) is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, key: CacheKey) -> asyncio.Task[None] | None:
        task = self._asking.get(key)
        if task is None and len(self._asking) < self._max_at_once:
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._run(key))
        return task

    async def _run(self, key: CacheKey) -> None:
        try:
            await self._ask(key)
        finally:
            del self._asking[key]

    async def close(self) -> None:
        """Give all questions up. Idempotent; cannot be cancelled."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(tasks)
