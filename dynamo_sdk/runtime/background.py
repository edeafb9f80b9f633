"""Small tasks that nobody waits for, but that must not outlive their owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    """Keeps references to running tasks, and cancels what is left on ``close``."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
