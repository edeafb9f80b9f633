"""The server's end: accepted connections, and a task per call.

The task of a call that is answered from an ``ItemSource`` only waits for its end; the items go out by plain
calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from dynamo_sdk.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DynamoError,
    EngineFailed,
    HandshakeError,
    Unavailable,
    WireError,
)
from dynamo_sdk.interfaces import ItemSource

from .clock import Clock, SystemClock, TimerHandle
from .link import HANDSHAKE_TIMEOUT_S, Link
from .network import Channel, Listener, Network
from .session import Cancelled, Credited, Event, Opened, Ready, Side, State

logger = logging.getLogger(__name__)


class ServerStream:
    """One call under way, seen from the handler."""

    def __init__(self, connection: ServerConnection, opened: Opened) -> None:
        self._connection = connection
        self.number = opened.stream
        self._credited: asyncio.Future[None] | None = None
        self._push: Callable[[], None] | None = None
        self.method = opened.method
        self.payload = opened.payload
        self.deadline_s = None if opened.deadline_s is None else connection.clock.now_s() + opened.deadline_s

    async def send(self, item: bytes) -> None:
        """Send one encoded item; waits for the client's credit and while the socket is full."""
        connection, session = self._connection, self._connection.session
        while session.credit(self.number) == 0 and session.is_open(self.number):
            self._credited = asyncio.get_running_loop().create_future()
            await self._credited
        session.send_item(self.number, item)
        connection.flush_soon()
        if not connection.is_writable:
            await connection.wait_writable()

    async def send_all(self, source: ItemSource[Any], encode: Callable[[Any], bytes]) -> None:
        """Send what ``source`` gives to its end, each item in the tick in which it is there. What the client
        has no credit for, or the socket no room, stays with the source. Closes the source."""
        push = _Push(self._connection, self.number, source, encode)
        self._push = push
        try:
            source.listen(push)
            push()
            await push.wait_over()
        finally:
            self._push = None
            source.close()

    def wake(self) -> None:
        if self._push is not None:
            self._push()
        waiter, self._credited = self._credited, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _Push:
    """Takes items and queues them for the client, whenever it is called and there is room."""

    __slots__ = ("_connection", "_encode", "_error", "_number", "_pause", "_session", "_source")

    def __init__(
        self,
        connection: ServerConnection,
        number: int,
        source: ItemSource[Any],
        encode: Callable[[Any], bytes],
    ) -> None:
        self._connection, self._session, self._number = connection, connection.session, number
        self._source, self._encode = source, encode
        self._error: Exception | None = None
        self._pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self) -> None:
        connection, session, source, number = self._connection, self._session, self._source, self._number
        try:
            while session.credit(number):
                if not connection.is_writable:
                    self._end_pause()
                    return
                item = source.take()
                if item is None:
                    return
                session.send_item(number, self._encode(item))
                connection.flush_soon()
                if source.is_over:  # the end goes out with the last item
                    source.close()
                    session.end(number)
                    self._end_pause()
                    return
        except Exception as error:
            self._error = error
            self._end_pause()

    def _end_pause(self) -> None:
        if not self._pause.done():
            self._pause.set_result(None)

    async def wait_over(self) -> None:
        """Return when the last item is queued; raises what the source raised."""
        while True:
            await self._pause
            if self._error is not None:
                raise self._error
            if self._source.is_over:
                return
            # Before the wait: in the tick in which it ends, the source may be faster than this task.
            self._pause = asyncio.get_running_loop().create_future()
            await self._connection.wait_writable()
            self()


Handler = Callable[[ServerStream], Awaitable[None]]


class _Call:
    """A handler at work. It is cancelled once at most, whoever asks (client, deadline, lost connection):
    a second time would interrupt it while it gives back what it holds."""

    def __init__(self, stream: ServerStream, run: Callable[[_Call], Coroutine[None, None, None]]) -> None:
        self.stream = stream
        self.has_expired = False
        self._is_cancelled = False
        self.task = asyncio.get_running_loop().create_task(run(self))

    def cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            self.task.cancel()

    def expire(self) -> None:
        self.has_expired = not self._is_cancelled
        self.cancel()


class ServerConnection(Link):
    """One accepted connection: runs ``handler`` as a task per stream."""

    def __init__(
        self,
        handler: Handler,
        secret: str | None,
        clock: Clock,
        while_draining: frozenset[str],
        on_over: Callable[[], None],
    ) -> None:
        super().__init__(Side.SERVER, secret, clock)
        self._handler = handler
        self._while_draining = while_draining
        self._on_over = on_over
        self._calls: dict[int, _Call] = {}
        self._is_draining = False
        self._handshake_timer = clock.call_later(
            HANDSHAKE_TIMEOUT_S, lambda: self.break_off(HandshakeError("no answer to our greeting"))
        )

    @property
    def is_writable(self) -> bool:
        return self.channel is None or self.channel.is_writable()

    async def wait_writable(self) -> None:
        if self.channel is not None:
            await self.channel.wait_writable()

    @property
    def num_calls(self) -> int:
        return len(self.tasks)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [call.task for call in self._calls.values() if not call.task.done()]

    def drain(self) -> None:
        """Tell the client, and refuse new streams."""
        self._is_draining = True
        if self.session.state is State.OPEN:
            self.session.say_goodbye()
            self.flush_soon()

    def handle(self, event: Event) -> None:
        match event:
            case Opened():
                if self._is_draining and event.method not in self._while_draining:
                    self.session.fail(event.stream, Unavailable("this worker is draining"))
                    self.flush_soon()
                    return
                call = self._calls[event.stream] = _Call(ServerStream(self, event), self._run)
                # Not in `_run`: a task that is cancelled before its first turn never enters it.
                call.task.add_done_callback(lambda _task: self._forget(event.stream))
            case Credited(number):
                if (credited := self._calls.get(number)) is not None:
                    credited.stream.wake()
            case Cancelled(number):
                if (cancelled := self._calls.get(number)) is not None:
                    cancelled.cancel()
            case Ready():
                self._handshake_timer.cancel()

    def lost(self, error: WireError) -> None:
        self._handshake_timer.cancel()
        self.session.close()
        for call in self._calls.values():
            call.cancel()
        self._end_if_over()

    def _forget(self, number: int) -> None:
        self._calls.pop(number, None)
        self._end_if_over()

    def _end_if_over(self) -> None:
        """Over is a connection that is lost and whose handlers have ended: ``close`` waits for those, too."""
        if self.session.state is State.CLOSED and not self._calls:
            self._on_over()

    async def _run(self, call: _Call) -> None:
        stream, number = call.stream, call.stream.number
        timer: TimerHandle | None = None
        if stream.deadline_s is not None:
            timer = self.clock.call_at(stream.deadline_s, call.expire)
        try:
            await self._handler(stream)
            self.session.end(number)
        except DynamoError as error:
            self.session.fail(number, error)
        except asyncio.CancelledError:
            if call.has_expired:
                self.session.fail(number, DeadlineExceeded(f"{stream.method} ran into its deadline"))
        except Exception as error:  # a bug in a service reaches its caller and leaves the connection alone
            logger.exception("%s failed", stream.method)
            self.session.fail(
                number, EngineFailed(f"{stream.method} failed: {type(error).__name__}: {error}")
            )
        finally:
            if timer is not None:
                timer.cancel()
            self.flush_soon()


class Server:
    """Listens at one address and serves every connection with one handler. ``while_draining``: methods
    that are answered even then."""

    def __init__(
        self,
        network: Network,
        handler: Handler,
        *,
        secret: str | None = None,
        clock: Clock | None = None,
        while_draining: frozenset[str] = frozenset(),
    ) -> None:
        self._network = network
        self._while_draining = while_draining
        self._handler = handler
        self._secret = secret
        self._clock = clock or SystemClock()
        self._connections: set[ServerConnection] = set()
        self._listener: Listener | None = None
        self._is_draining = False
        self.address = ""

    async def start(self, address: str) -> None:
        """Listen; ``self.address`` is then the real address. Raises ``ConfigError``."""
        self._listener = await self._network.listen(address, self._accept)
        self.address = self._listener.address

    def _accept(self, channel: Channel) -> None:
        connection = ServerConnection(
            self._handler,
            self._secret,
            self._clock,
            self._while_draining,
            lambda: self._connections.discard(connection),
        )
        self._connections.add(connection)
        if self._is_draining:
            connection.drain()
        channel.on_data, channel.on_close = connection.on_data, connection.on_close
        connection.start(channel)

    @property
    def num_calls(self) -> int:
        return sum(connection.num_calls for connection in self._connections)

    async def drain(self) -> None:
        """Refuse new calls, also on new connections, and return when none is left."""
        self._is_draining = True
        for connection in list(self._connections):
            connection.drain()
        while tasks := [task for connection in self._connections for task in connection.tasks]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop listening, cancel every call, wait for the handlers to end. Idempotent."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        await listener.close()
        tasks = [task for connection in self._connections for task in connection.tasks]
        for connection in list(self._connections):
            connection.break_off(ConnectionLost("the server is closing"))
        if tasks:
            await asyncio.wait(tasks)
