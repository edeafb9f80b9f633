"""The client's end of a connection: many calls at once, each a stream of encoded items."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from dynamo_sdk.errors import ConnectionLost, DeadlineExceeded, DynamoError, WireError

from .clock import Clock, SystemClock, TimerHandle
from .deadline import earliest_deadline_s
from .link import HANDSHAKE_TIMEOUT_S, Link
from .network import Network
from .session import Draining, Event, Ready, Received, Side, StreamFailed

STREAM_CREDIT = 64
"""Items a server may have under way per stream before the client must have read some."""


class ClientStream:
    """One call under way, seen from the client: an async iterator of encoded items.

    ``aclose`` cancels it at the server unless it is over. Not to be read by two tasks at once.
    """

    def __init__(self, connection: ClientConnection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._items: deque[msgspec.Raw] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False
        self._error: DynamoError | None = None
        self._num_taken = 0
        self.timer: TimerHandle | None = None

    def __aiter__(self) -> ClientStream:
        return self

    async def __anext__(self) -> msgspec.Raw:
        while not self._items:
            if self._is_over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._take()

    def _take(self) -> msgspec.Raw:
        """The next item, which must be there. Reading grants the server new credit."""
        item = self._items.popleft()
        self._num_taken += 1
        if self._num_taken >= STREAM_CREDIT // 2 and not self._is_over:
            self._connection.grant(self._number, self._num_taken)
            self._num_taken = 0
        return item

    @property
    def is_over(self) -> bool:
        """Nothing more will arrive."""
        return self._is_over

    async def aclose(self) -> None:
        self.fail(None)
        self._items.clear()

    def fail(self, error: DynamoError | None) -> None:
        """Cancel the call at the server unless it is over; ``error`` is what its reader gets."""
        if not self._is_over:
            self._connection.cancel(self._number)
            self.finish(error)

    def put(self, item: msgspec.Raw) -> None:
        self._items.append(item)
        self._wake()

    def finish(self, error: DynamoError | None) -> None:
        """No more items; what has arrived can still be read, then ``error`` is raised."""
        if not self._is_over:
            self._is_over, self._error = True, error
            if self.timer is not None:
                self.timer.cancel()
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class ClientConnection(Link):
    """A connection to one server; many streams at once. Made by ``connect``."""

    def __init__(self, secret: str | None, clock: Clock) -> None:
        super().__init__(Side.CLIENT, secret, clock)
        self._streams: dict[int, ClientStream] = {}
        self._error: WireError | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closes_when_idle = False
        self.is_draining = False
        """The server has said that new calls belong elsewhere."""

    async def wait_ready(self) -> None:
        await self._ready

    @property
    def is_usable(self) -> bool:
        return self._error is None

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def open(self, method: str, payload: bytes, *, timeout_s: float | None = None) -> ClientStream:
        """Start a call. It fails with ``DeadlineExceeded`` after ``timeout_s``, or when the call that
        this one is part of runs out of time. Raises ``ConnectionLost``, ``FrameTooLarge``."""
        if self._error is not None:
            raise self._error
        now_s = self.clock.now_s()
        deadline_s = earliest_deadline_s(timeout_s, now_s)
        limit_s = None if deadline_s is None else deadline_s - now_s
        if limit_s is not None and limit_s <= 0:
            raise DeadlineExceeded(f"no time is left for {method}")
        number = self.session.open(method, msgspec.Raw(payload), credit=STREAM_CREDIT, deadline_s=limit_s)
        stream = self._streams[number] = ClientStream(self, number)
        if limit_s is not None:
            stream.timer = self.clock.call_later(limit_s, lambda: self._expire(number, method, limit_s))
        self.flush_soon()
        return stream

    def cancel(self, number: int) -> None:
        if self._forget(number) is not None and self._error is None:
            self.session.cancel(number)
            self.flush_soon()

    def grant(self, number: int, num_items: int) -> None:
        if self._error is None:
            self.session.grant(number, num_items)
            self.flush_soon()

    def close_when_idle(self) -> None:
        """Close as soon as no stream is open; for a peer that is leaving."""
        self._closes_when_idle = True
        if not self._streams:
            self.close_soon()

    def close_soon(self) -> None:
        """Close; every open stream fails with ``ConnectionLost``. Idempotent."""
        self.break_off(ConnectionLost("the connection was closed"))

    async def aclose(self) -> None:
        self.close_soon()

    def _forget(self, number: int) -> ClientStream | None:
        """Take a stream that is over off the books."""
        stream = self._streams.pop(number, None)
        if self._closes_when_idle and not self._streams:
            asyncio.get_running_loop().call_soon(self.close_soon)
        return stream

    def _expire(self, number: int, method: str, limit_s: float) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.fail(DeadlineExceeded(f"{method} took longer than its deadline of {limit_s:.3g} s"))

    def handle(self, event: Event) -> None:
        match event:
            case Received(entries, ended):
                streams = self._streams
                for number, payload in entries:
                    if (stream := streams.get(number)) is not None:
                        stream.put(payload)
                for number in ended:
                    if (finished := self._forget(number)) is not None:
                        finished.finish(None)
            case StreamFailed(number, error):
                if (failed := self._forget(number)) is not None:
                    failed.finish(error)
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(None)
            case Draining():
                self.is_draining = True

    def lost(self, error: WireError) -> None:
        if self._error is not None:
            return
        # A link that breaks in the handshake is a peer that died. One with another secret needs no guess:
        # both sides send their proof before they judge the other's, so we see the mismatch ourselves.
        self._error = error
        self.session.close()
        if not self._ready.done():
            self._ready.set_exception(error)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.finish(error)


async def connect(
    network: Network, address: str, *, secret: str | None = None, clock: Clock | None = None
) -> ClientConnection:
    """Connect and shake hands. Raises ``ConnectionLost`` or ``HandshakeError``, both naming the address."""
    connection = ClientConnection(secret, clock or SystemClock())
    channel = await network.connect(address, connection.on_data, connection.on_close)
    timer: TimerHandle | None = None
    try:
        connection.start(channel)
        # Whoever accepts and says nothing is stuck, not a stranger: another worker may do better.
        timer = connection.clock.call_later(
            HANDSHAKE_TIMEOUT_S, lambda: connection.break_off(ConnectionLost("no answer to our greeting"))
        )
        await connection.wait_ready()
    except WireError as error:
        raise type(error)(f"{address}: {error}") from error
    except BaseException:
        channel.abort()
        raise
    finally:
        if timer is not None:
            timer.cancel()
    return connection
