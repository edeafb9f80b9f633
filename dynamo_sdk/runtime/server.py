"""The server's end: accepted connections, and a task per call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from dynamo_sdk.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DynamoError,
    EngineFailed,
    HandshakeError,
    Unavailable,
    WireError,
)

from .clock import Clock, SystemClock, TimerHandle
from .link import HANDSHAKE_TIMEOUT_S, Link
from .network import Channel, Listener, Network
from .session import Cancelled, Credited, Event, Opened, Ready, Side, State

logger = logging.getLogger(__name__)


class ServerStream:
    """One call under way, seen from the handler."""

    def __init__(self, connection: ServerConnection, opened: Opened) -> None:
        self._connection = connection
        self._number = opened.stream
        self._credited: asyncio.Future[None] | None = None
        self.method = opened.method
        self.payload = opened.payload
        self.deadline_s = None if opened.deadline_s is None else connection.clock.now_s() + opened.deadline_s

    async def send(self, item: bytes) -> None:
        """Send one encoded item; waits for the client's credit and while the socket is full."""
        connection, session = self._connection, self._connection.session
        while session.credit(self._number) == 0 and session.is_open(self._number):
            self._credited = asyncio.get_running_loop().create_future()
            await self._credited
        session.send_item(self._number, item)
        connection.flush_soon()
        channel = connection.channel
        if channel is not None and not channel.is_writable():
            await channel.wait_writable()

    def wake(self) -> None:
        waiter, self._credited = self._credited, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


Handler = Callable[[ServerStream], Awaitable[None]]


class ServerConnection(Link):
    """One accepted connection: runs ``handler`` as a task per stream."""

    def __init__(
        self, handler: Handler, secret: str | None, clock: Clock, on_over: Callable[[], None]
    ) -> None:
        super().__init__(Side.SERVER, secret, clock)
        self._handler = handler
        self._on_over = on_over
        self._calls: dict[int, tuple[ServerStream, asyncio.Task[None]]] = {}
        self._is_draining = False
        self._handshake_timer = clock.call_later(
            HANDSHAKE_TIMEOUT_S, lambda: self.break_off(HandshakeError("no answer to our greeting"))
        )

    @property
    def num_calls(self) -> int:
        return len(self.tasks)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._calls.values() if not task.done()]

    def drain(self) -> None:
        """Tell the client, and refuse new streams."""
        self._is_draining = True
        if self.session.state is State.OPEN:
            self.session.say_goodbye()
            self.flush_soon()

    def handle(self, event: Event) -> None:
        match event:
            case Opened():
                stream = ServerStream(self, event)
                if self._is_draining:
                    self.session.fail(event.stream, Unavailable("this worker is draining"))
                    self.flush_soon()
                    return
                task = asyncio.get_running_loop().create_task(self._run(stream, event.stream))
                self._calls[event.stream] = (stream, task)
                # Not in `_run`: a task that is cancelled before its first turn never enters it.
                task.add_done_callback(lambda _task: self._calls.pop(event.stream, None))
            case Credited(number):
                if (credited := self._calls.get(number)) is not None:
                    credited[0].wake()
            case Cancelled(number):
                if (cancelled := self._calls.get(number)) is not None:
                    cancelled[1].cancel()
            case Ready():
                self._handshake_timer.cancel()

    def lost(self, error: WireError) -> None:
        self._handshake_timer.cancel()
        self.session.close()
        for _, task in self._calls.values():
            task.cancel()
        self._on_over()

    async def _run(self, stream: ServerStream, number: int) -> None:
        timer: TimerHandle | None = None
        is_expired = False
        if stream.deadline_s is not None:
            task = asyncio.current_task()

            def expire() -> None:
                nonlocal is_expired
                is_expired = True
                if task is not None:
                    task.cancel()

            timer = self.clock.call_at(stream.deadline_s, expire)
        try:
            await self._handler(stream)
            self.session.end(number)
        except DynamoError as error:
            self.session.fail(number, error)
        except asyncio.CancelledError:
            if is_expired:
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
    """Listens at one address and serves every connection with one handler."""

    def __init__(
        self,
        network: Network,
        handler: Handler,
        *,
        secret: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._network = network
        self._handler = handler
        self._secret = secret
        self._clock = clock or SystemClock()
        self._connections: set[ServerConnection] = set()
        self._listener: Listener | None = None
        self.address = ""

    async def start(self, address: str) -> None:
        """Listen; ``self.address`` is then the real address. Raises ``ConfigError``."""
        self._listener = await self._network.listen(address, self._accept)
        self.address = self._listener.address

    def _accept(self, channel: Channel) -> None:
        connection = ServerConnection(
            self._handler, self._secret, self._clock, lambda: self._connections.discard(connection)
        )
        self._connections.add(connection)
        channel.on_data, channel.on_close = connection.on_data, connection.on_close
        connection.start(channel)

    @property
    def num_calls(self) -> int:
        return sum(connection.num_calls for connection in self._connections)

    async def drain(self) -> None:
        """Refuse new calls and return when none is left."""
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
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(tasks)
