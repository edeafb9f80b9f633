"""A small HTTP/1.1 client that costs a load generator little: one callback per read, no task per chunk.

It knows what measuring an OpenAI server takes and no more: requests that are bytes already, responses
that are framed by length, chunks or the end of the connection, keep-alive, TLS. No redirects, no proxies,
no compression.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from httptools import HttpParserError, HttpResponseParser

from dynamo_sdk.runtime.clock import Clock, SystemClock

from .record import ErrorKind
from .target import Target


class Reader(Protocol):
    """Takes one response as it arrives. ``now_s`` is the moment of the read that brought ``piece``."""

    def status(self, status: int) -> None: ...

    def body(self, now_s: float, piece: bytes) -> None: ...

    def fail(self, kind: ErrorKind, message: str) -> None: ...


class _Connection(asyncio.Protocol):
    """One socket; one response at a time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._read_s = 0.0
        self._parser = HttpResponseParser(self)
        self._reader: Reader | None = None
        self._over: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._is_framed = False
        self._ends_with_connection = False
        self.has_answered = False
        """Whether any byte of the current response has come."""
        self.is_reusable = False

    async def exchange(self, message: bytes, reader: Reader) -> None:
        """Return when the response is over; ``reader`` knows how. Cancelling it breaks the connection."""
        assert self._transport is not None
        self._reader = reader
        self._over = asyncio.get_running_loop().create_future()
        self.has_answered = self.is_reusable = False
        self._is_framed = self._ends_with_connection = False
        self._transport.write(message)
        try:
            await self._over
        finally:
            self._reader = None
            if not self.is_reusable:
                self.abort()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close now, without writing what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    # -- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but inheritance

    def data_received(self, data: bytes) -> None:
        self._read_s = self._now_s()
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._end(ErrorKind.MALFORMED, f"no HTTP/1.1 response: {error}")
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_reusable = False
        if error is None and self._ends_with_connection:
            self._end()
        else:
            self._end(ErrorKind.CLOSED, f"the server closed the connection{f': {error}' if error else ''}")

    # -- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        self._ends_with_connection = not self._is_framed
        if self._reader is not None:
            self._reader.status(self._parser.get_status_code())

    def on_body(self, piece: bytes) -> None:
        if self._reader is not None:
            self._reader.body(self._read_s, piece)

    def on_message_complete(self) -> None:
        self.is_reusable = self._parser.should_keep_alive()
        self._end()

    def _end(self, kind: ErrorKind | None = None, message: str = "") -> None:
        if self._over is None or self._over.done():
            return
        if kind is not None and self._reader is not None:
            self._reader.fail(kind, message)
        self._over.set_result(None)


class HttpClient:
    """Connections to one server: as many as there are requests at once, each kept for the next."""

    def __init__(self, target: Target, clock: Clock, *, connect_timeout_s: float = 10.0) -> None:
        self._target = target
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._tls = ssl.create_default_context() if target.is_tls else None
        self._idle: list[_Connection] = []
        self.num_connections = 0
        """Connections made so far."""

    async def send(self, message: bytes, reader: Reader) -> None:
        """One request; every failure is told to ``reader``. A kept connection that the server closed
        before it answered is replaced once: that is a race of keep-alive and no failure of the request."""
        connection = self._take_idle()
        if connection is not None:
            retry = _Retry(reader)
            await connection.exchange(message, retry)
            if retry.is_closed and not connection.has_answered:
                connection = None
            else:
                retry.pass_on()
        if connection is None:
            connection = await self._connect(reader)
            if connection is None:
                return
            await connection.exchange(message, reader)
        if connection.is_reusable and connection.is_open:
            self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle; requests that run end with their task."""
        while self._idle:
            self._idle.pop().abort()

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, reader: Reader) -> _Connection | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._clock.now_s),
                    self._target.host,
                    self._target.port,
                    ssl=self._tls,
                )
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no connection within {self._connect_timeout_s:g} s"
            reader.fail(ErrorKind.CONNECT, why)
            return None
        self.num_connections += 1
        return connection


class _Retry:
    """Passes everything on but a close, which the client may repair."""

    def __init__(self, reader: Reader) -> None:
        self.status = reader.status
        self.body = reader.body
        self.is_closed = False
        self._reader = reader
        self._message = ""

    def fail(self, kind: ErrorKind, message: str) -> None:
        if kind is ErrorKind.CLOSED:
            self.is_closed, self._message = True, message
        else:
            self._reader.fail(kind, message)

    def pass_on(self) -> None:
        if self.is_closed:
            self._reader.fail(ErrorKind.CLOSED, self._message)


class WholeBody:
    """A reader that keeps a response as it is, up to ``max_bytes``."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.code = 0
        self.content = b""
        self.failure: str | None = None
        self._max_bytes = max_bytes

    def status(self, status: int) -> None:
        self.code = status

    def body(self, now_s: float, piece: bytes) -> None:
        self.content += piece[: self._max_bytes - len(self.content)]

    def fail(self, kind: ErrorKind, message: str) -> None:
        self.failure = self.failure or message


async def get(target: Target, path: str, *, timeout_s: float = 10.0) -> WholeBody:
    """One GET below the API's prefix; a failure is in the result."""
    client = HttpClient(target, SystemClock(), connect_timeout_s=timeout_s)
    answer = WholeBody()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await client.send(target.get(path), answer)
    if not answer.code:
        answer.fail(ErrorKind.TIMEOUT, f"no answer within {timeout_s:g} s")
    client.close()
    return answer
