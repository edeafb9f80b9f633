"""All connections of one server: how many there are, what they share, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Protocol

from dynamo_sdk.errors import DynamoError

from .connection import Connection
from .exchange import BodyBudget, Exchange
from .limits import HttpLimits


class Application(Protocol):
    """What answers requests."""

    @property
    def limits(self) -> HttpLimits: ...

    def answer(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """In a task of its own, for a request that is complete. Answers whatever happens."""

    def refuse(self, exchange: Exchange, error: DynamoError) -> None:
        """Instead of ``answer``, for a request that is not, and will not be."""


class Connections:
    """``budget`` and ``tasks``, the answers at work, are of all of them together."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.limits = app.limits
        self.budget = BodyBudget(self.limits.max_buffered_bytes)
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_ending = False
        self._open: set[Connection] = set()
        self._all_gone = asyncio.Event()
        self._all_gone.set()

    def make(self) -> Connection:
        return Connection(self)

    def add(self, connection: Connection) -> bool:
        """False if there are too many, or the server is ending: it was accepted just before."""
        self._open.add(connection)
        self._all_gone.clear()
        return len(self._open) <= self.limits.max_connections and not self.is_ending

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_gone.set()

    def end(self) -> None:
        """Close each connection as soon as no answer is under way on it."""
        self.is_ending = True
        for connection in list(self._open):
            connection.end()

    def close(self) -> None:
        """What is written still goes out."""
        for connection in list(self._open):
            connection.close()

    def abort(self) -> None:
        for connection in list(self._open):
            connection.abort()

    async def wait_gone(self, timeout_s: float | None = None) -> None:
        """Return when none is open, or that has taken too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._all_gone.wait()
