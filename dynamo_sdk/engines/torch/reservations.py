"""``ReservationQueue``: who waits for blocks that will be filled from elsewhere; first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dynamo_sdk.errors import DynamoError, EngineFailed
from dynamo_sdk.interfaces import BlockReservation
from dynamo_sdk.types import GenerateRequest

Reserve = Callable[[GenerateRequest], BlockReservation | None]


class ReservationQueue:
    """``reserve`` answers None while memory is short; ``grant`` asks it again, in order."""

    def __init__(self, reserve: Reserve, release: Callable[[str], None]) -> None:
        self._reserve = reserve
        self._release = release
        self._waiting: deque[tuple[GenerateRequest, asyncio.Future[BlockReservation]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, request: GenerateRequest) -> BlockReservation:
        """Reserve now or when the turn comes. Cancelled while it waits: nothing stays reserved. Raises
        what ``reserve`` raises, and ``EngineFailed``."""
        if not self._waiting and (reservation := self._reserve(request)) is not None:
            return reservation
        future: asyncio.Future[BlockReservation] = asyncio.get_running_loop().create_future()
        entry = (request, future)
        self._waiting.append(entry)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(request.request_id)  # granted, but nobody will take it
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def grant(self) -> None:
        """Serve the queue's head for as long as memory lasts."""
        while self._waiting:
            request, future = self._waiting[0]
            if not future.done():
                try:
                    reservation = self._reserve(request)
                except DynamoError as error:
                    future.set_exception(error)
                else:
                    if reservation is None:
                        return
                    future.set_result(reservation)
            self._waiting.popleft()

    def fail(self, reason: str) -> None:
        """Refuse everybody who waits, with ``EngineFailed``."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(EngineFailed(reason))
