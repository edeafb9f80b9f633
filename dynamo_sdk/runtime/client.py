"""The client's end of a connection: many calls at once, each a stream of encoded items.

A call is read in one of two ways: pulled, as an async iterator (``open``), or pushed, by plain calls to a
listener (``push``). Tokens are pushed: a task that wakes up for each of them would cost more than they do.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from dynamo_sdk.errors import ConnectionLost, DeadlineExceeded, DynamoError, WireError

from .clock import Clock, SystemClock, TimerHandle
from .deadline import earliest_deadline_s
from .link import HANDSHAKE_TIMEOUT_S, Link
from .network import Network
from .session import Draining, Event, Ready, Received, Side, StreamFailed

STREAM_CREDIT = 64
"""Items a server may have under way per stream before the client must have read some."""

StreamT = TypeVar("StreamT", bound="ClientStream")


class ItemListener(Protocol):
    """Is given what a call answers, in the event-loop tick in which it arrives. Must not raise or block."""

    def on_item(self, item: msgspec.Raw) -> None: ...

    def on_end(self, error: DynamoError | None) -> None:
        """Nothing follows; ``error`` is why, unless the call has ended as it should."""


class ClientStream(ABC):
    """One call under way, seen from the client."""

    def __init__(self, connection: ClientConnection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._items: deque[msgspec.Raw] = deque()
        self._is_over = False
        self._error: DynamoError | None = None
        self._num_taken = 0
        self.timer: TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more will arrive."""
        return self._is_over

    def fail(self, error: DynamoError | None) -> None:
        """Cancel the call at the server unless it is over; ``error`` is what its reader gets."""
        if not self._is_over:
            self._connection.cancel(self._number)
            self.finish(error)

    def finish(self, error: DynamoError | None) -> None:
        """No more items; what has arrived can still be read, then comes ``error``."""
        if not self._is_over:
            self._is_over, self._error = True, error
            if self.timer is not None:
                self.timer.cancel()
            self._on_over()

    @abstractmethod
    def put(self, item: msgspec.Raw) -> None:
        """An item has arrived."""

    @abstractmethod
    def _on_over(self) -> None: ...

    def _count_taken(self) -> None:
        """An item was read, which makes room: grant the server new credit in time."""
        self._num_taken += 1
        if self._num_taken >= STREAM_CREDIT // 2 and not self._is_over:
            self._connection.grant(self._number, self._num_taken)
            self._num_taken = 0


class QueuedStream(ClientStream):
    """An async iterator of encoded items. ``aclose`` cancels the call at the server unless it is over.
    Not to be read by two tasks at once."""

    _waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> QueuedStream:
        return self

    async def __anext__(self) -> msgspec.Raw:
        while not self._items:
            if self._is_over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
        self._count_taken()
        return item

    async def aclose(self) -> None:
        self.fail(None)
        self._items.clear()

    def put(self, item: msgspec.Raw) -> None:
        self._items.append(item)
        self._wake()

    def _on_over(self) -> None:
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class PushedStream(ClientStream):
    """Gives its items to a listener. While it is paused they wait here, and the server once its credit is
    used up."""

    def __init__(self, connection: ClientConnection, number: int, listener: ItemListener) -> None:
        super().__init__(connection, number)
        self._listener: ItemListener | None = listener
        self._is_paused = False

    def put(self, item: msgspec.Raw) -> None:
        listener = self._listener
        if listener is None:
            return
        if self._is_paused:
            self._items.append(item)
        else:
            self._count_taken()
            listener.on_item(item)

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        items = self._items
        while items and not self._is_paused and self._listener is not None:
            self._count_taken()
            self._listener.on_item(items.popleft())
        if self._is_over:
            self._on_over()

    def cancel(self) -> None:
        """End the call; the listener hears nothing more. Idempotent."""
        self._listener = None
        self._items.clear()
        self.fail(None)

    def _on_over(self) -> None:
        listener = self._listener
        if listener is not None and not self._items:
            self._listener = None
            listener.on_end(self._error)


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

    def open(self, method: str, payload: bytes, *, timeout_s: float | None = None) -> QueuedStream:
        """Start a call. It fails with ``DeadlineExceeded`` after ``timeout_s``, or when the call that
        this one is part of runs out of time. Raises ``ConnectionLost``, ``FrameTooLarge``."""
        return self._open(method, payload, timeout_s, lambda number: QueuedStream(self, number))

    def push(
        self, method: str, payload: bytes, listener: ItemListener, *, timeout_s: float | None = None
    ) -> PushedStream:
        """As ``open``, for a listener that is told everything; never before this returns."""
        return self._open(method, payload, timeout_s, lambda number: PushedStream(self, number, listener))

    def _open(
        self, method: str, payload: bytes, timeout_s: float | None, build: Callable[[int], StreamT]
    ) -> StreamT:
        if self._error is not None:
            raise self._error
        now_s = self.clock.now_s()
        deadline_s = earliest_deadline_s(timeout_s, now_s)
        limit_s = None if deadline_s is None else deadline_s - now_s
        if limit_s is not None and limit_s <= 0:
            raise DeadlineExceeded(f"no time is left for {method}")
        number = self.session.open(method, msgspec.Raw(payload), credit=STREAM_CREDIT, deadline_s=limit_s)
        stream = build(number)
        self._streams[number] = stream
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
