"""A live view of who is there, kept by one task from discovery."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import Discovery, Fleet
from dynamo_sdk.types import WorkerRecord

logger = logging.getLogger(__name__)


class FleetView:
    """The fleet as of the last news. Reading is free; ``wait_until`` waits for a state."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[Fleet], None]] = []
        self.workers: Fleet = {}

    async def start(self) -> None:
        """Return when the first view is there. Raises ``WireError`` when discovery cannot be reached."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._follow(first))
        await first

    def subscribe(self, listener: Callable[[Fleet], None]) -> Callable[[], None]:
        """Call ``listener`` now and after each change; it must not block. What this returns ends it."""
        self._listeners.append(listener)
        listener(self.workers)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def of_service(self, service: str) -> list[WorkerRecord]:
        return [record for record in self.workers.values() if record.service == service]

    async def wait_until(self, is_met: Callable[[Fleet], bool]) -> None:
        while not is_met(self.workers):
            await self._changed.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self, first: asyncio.Future[None]) -> None:
        try:
            async with aclosing(self._discovery.watch()) as fleets:
                async for fleet in fleets:
                    self.workers = fleet
                    for listener in list(self._listeners):
                        listener(fleet)
                    self._changed.set()
                    self._changed = asyncio.Event()
                    if not first.done():
                        first.set_result(None)
        except Exception as error:
            if not first.done():
                first.set_exception(error)
            elif isinstance(error, DynamoError):
                logger.error("discovery ended, the last view stays: %s", error)
            else:  # a bug in a listener or a discovery plugin; nobody awaits this task
                logger.exception("the view of the fleet broke, its last state stays")
        finally:
            first.cancel()
