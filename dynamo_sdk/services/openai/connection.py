"""One HTTP/1.1 connection: requests in, within limits; their answers out, in order.

``httptools`` parses. A request is handed to the application once its body is there, so that reading and its
bounds are done with before any work begins; whatever is wrong until then is answered from here. Nothing a
client does grows or lasts for ever: heads, bodies, idling and answers left unread all have an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote_to_bytes

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

from .errors import BodyTimeout, ErrorBody, ErrorObject
from .exchange import Exchange
from .lazy_timer import LazyTimer
from .sse import encode_json
from .stall_watch import StallWatch

if TYPE_CHECKING:
    from .connections import Connections

_LINGER_S = 2.0
"""How long to go on reading a body that was refused, so that its sender gets to read why."""
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
}
_log = logging.getLogger("dynamo_sdk.http")


class _Expected(Enum):
    """What must come next, in time."""

    HEAD = auto()
    BODY = auto()
    NEXT = auto()


class Connection(asyncio.Protocol):
    """A request is *incoming* until its body is there; then it waits behind the one that is answered."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._limits = connections.limits
        self._parser = HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming: Exchange | None = None
        self._answering: Exchange | None = None
        self._behind: deque[Exchange] = deque()
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._num_unparsed_bytes = 0
        self._num_head_bytes = 0  # where `_counts_head`: of URL and headers, which may all come in one piece
        self._counts_head = False
        self._is_reading = True
        self._is_closed = False
        self._expected: _Expected | None = None
        self._read_timer = LazyTimer()
        self._stall_watch = StallWatch(self._limits.write_stall_timeout_s)
        self._writable: asyncio.Future[None] | None = None  # while the client is slow to read
        self._body_framing: bytes | None = None
        self._is_replaying_head = False
        self._waits_for_continue = False

    # --- connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but inheritance
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._connections.add(self):
            self.close()
            return
        self._expect(_Expected.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._read_timer.close()
        self._stall_watch.close()
        self.resume_writing()
        unanswered = [*self._behind, *([self._incoming] if self._incoming is not None else [])]
        self._behind.clear()
        for exchange in unanswered:
            exchange.close()
        answering, self._answering, self._incoming = self._answering, None, None
        if answering is not None:
            answering.leave()
        self._connections.discard(self)

    def close(self) -> None:
        """Send what is left to send, and close; a client that does not read it is cut off in time."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._transport is not None:
            self._transport.close()
            self._stall_watch.start(self._transport)

    def abort(self) -> None:
        """Whatever is left to send."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """Close now if no answer is under way, else behind that."""
        if self._answering is None:
            self.close()
        else:
            self._answering.keeps_alive = False

    # --- reading

    def data_received(self, data: bytes) -> None:
        num_before = self._num_unparsed_bytes
        self._num_unparsed_bytes += len(data)
        # A head cannot be too large where all that has come is not; and else only its own bytes tell.
        self._counts_head = self._num_unparsed_bytes > self._limits.max_head_bytes
        self._num_head_bytes = num_before
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    break
                except HttpParserUpgrade as stopped:
                    data = data[stopped.args[0] :]
                    self._decline_upgrade()
        except HttpParserCallbackError as error:  # a bug of ours
            if error.__context__ is not None:  # the parser says it once
                _log.error("a request could not be read", exc_info=error.__context__)
            self._refuse(500, "the server failed to read the request; its log says why")
        except HttpParserError as error:
            self._refuse(400, f"this is not HTTP: {error}")
        if self._is_closed:
            return
        # Heads, trailers and chunk extensions grow this; a whole head or a piece of a body resets it.
        if self._num_unparsed_bytes > self._limits.max_head_bytes:
            self._refuse_head()
        else:
            self._expect_next()

    def on_url(self, url: bytes) -> None:
        if self._is_replaying_head:
            return
        if not self._counts_head or self._has_room_for(len(url)):
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_replaying_head:
            return
        if not self._counts_head or self._has_room_for(len(name) + len(value)):
            self._headers[name.lower()] = value

    def _has_room_for(self, num_bytes: int) -> bool:
        self._num_head_bytes += num_bytes
        return self._num_head_bytes <= self._limits.max_head_bytes

    def on_headers_complete(self) -> None:
        if self._is_replaying_head or self._is_closed:
            return
        if self._counts_head and self._num_head_bytes > self._limits.max_head_bytes:
            self._refuse_head()
            return
        self._num_unparsed_bytes = 0
        self._expect(None)
        parser = self._parser
        is_http_1_0 = parser.get_http_version() == "1.0"
        exchange = self._incoming = Exchange(
            self,
            method=parser.get_method().decode("ascii"),
            path=_path_of(self._url),
            headers=self._headers,
            limits=self._limits,
            budget=self._connections.budget,
            is_http_1_0=is_http_1_0,
            keeps_alive=parser.should_keep_alive() and not self._connections.is_ending,
        )
        self._url, self._headers = b"", {}  # trailers must not get at the headers
        if exchange.refusal is not None:
            self._complete(exchange)
        elif exchange.headers.get(b"expect", b"").lower() == b"100-continue" and not is_http_1_0:
            self._waits_for_continue = True  # clients of 1.0 know no answer before the answer
            self._ask_for_body()

    def _ask_for_body(self) -> None:
        """Where the client waits for that, and it cannot be taken for a part of another answer."""
        if self._waits_for_continue and self._answering is None:
            self._waits_for_continue = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._num_unparsed_bytes = 0
        self._waits_for_continue = False
        exchange = self._incoming
        if exchange is None or exchange.refusal is not None:
            return
        if not exchange.take_body(body):
            self._complete(exchange)

    def on_message_complete(self) -> None:
        self._num_unparsed_bytes = self._num_head_bytes = 0
        self._waits_for_continue = False
        self._headers = {}  # the next request has nothing of this one's trailers
        exchange = self._incoming
        if exchange is None:
            return
        if self._parser.should_upgrade():
            self._body_framing = _body_framing(exchange.headers)
            if self._body_framing is not None:
                return  # the parser skips the body of an upgrade, so the message is not complete
        self._incoming = None
        if exchange.refusal is None:
            self._complete(exchange)
        elif exchange.is_answered:
            self.close()

    def _decline_upgrade(self) -> None:
        """The parser has stopped behind a head that offers an upgrade, as Java's HTTP client does with each
        first request (``h2c``). Go on without: a new parser is shown how the body is framed, if there is
        one, and then all that has not been read."""
        self._parser = HttpRequestParser(self)
        framing, self._body_framing = self._body_framing, None
        if framing is not None:
            self._is_replaying_head = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
            self._is_replaying_head = False

    # --- one request after the other

    def _complete(self, exchange: Exchange) -> None:
        """It can be answered: its body is there, or will not be read."""
        if self._answering is None:
            self._begin(exchange)
            return
        self._behind.append(exchange)
        if self._is_reading:
            self._is_reading = False
            self._transport_or_fail().pause_reading()

    def _begin(self, exchange: Exchange) -> None:
        self._answering = exchange
        connections = self._connections
        if exchange.refusal is not None:
            connections.app.refuse(exchange, exchange.refusal)
            return
        exchange.begin()
        task = asyncio.get_running_loop().create_task(connections.app.answer(exchange))
        exchange.task = task
        connections.tasks.add(task)
        task.add_done_callback(connections.tasks.discard)

    def answered(self, exchange: Exchange) -> None:
        """For ``Exchange``: its last byte was written."""
        if exchange is not self._answering:
            return
        self._answering = None
        if not exchange.keeps_alive:
            if self._incoming is exchange:
                self._read_timer.start(min(_LINGER_S, self._limits.body_timeout_s), self.close)
            else:
                self.close()
            return
        if self._behind:
            if self._transport_or_fail().is_closing():
                return  # a task that is cancelled before it has begun would not give back the body
            self._begin(self._behind.popleft())
        if not self._behind and not self._is_reading and not self._is_closed:
            self._is_reading = True
            self._transport_or_fail().resume_reading()
        self._ask_for_body()
        self._expect_next()

    # --- what must come in time

    def _expect_next(self) -> None:
        if not self._is_reading:
            self._expect(None)
        elif self._incoming is not None:
            if self._incoming.refusal is None:
                self._expect(None if self._waits_for_continue else _Expected.BODY)
        elif self._answering is not None:
            self._expect(None)
        elif self._num_unparsed_bytes:
            self._expect(_Expected.HEAD)
        elif self._expected is not _Expected.HEAD:
            self._expect(_Expected.NEXT)

    def _expect(self, expected: _Expected | None) -> None:
        if expected is self._expected:
            return
        self._expected = expected
        limits = self._limits
        match expected:
            case None:
                self._read_timer.stop()
            case _Expected.HEAD:
                self._read_timer.start(limits.head_timeout_s, self._on_head_timeout)
            case _Expected.BODY:
                self._read_timer.start(limits.body_timeout_s, self._on_body_timeout)
            case _Expected.NEXT:
                self._read_timer.start(limits.keep_alive_s, self.close)

    def _on_head_timeout(self) -> None:
        self._refuse(408, f"no request head arrived within {self._limits.head_timeout_s:g} seconds")

    def _on_body_timeout(self) -> None:
        exchange = self._incoming
        if exchange is not None and exchange.refusal is None:
            exchange.refusal = BodyTimeout(
                f"the request body did not arrive within {self._limits.body_timeout_s:g} seconds"
            )
            self._complete(exchange)

    # --- writing

    def write(self, data: bytes) -> None:
        if not self._is_closed:
            self._stall_watch.num_written_bytes += len(data)
            self._transport_or_fail().write(data)

    @property
    def is_writable(self) -> bool:
        """The client is not far behind."""
        return self._writable is None

    async def wait_writable(self) -> None:
        if self._writable is not None:
            await self._writable

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()
        self._stall_watch.start(self._transport_or_fail())

    def resume_writing(self) -> None:
        if not self._is_closed:  # then all of it must go out in time
            self._stall_watch.stop()
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _transport_or_fail(self) -> asyncio.Transport:
        assert self._transport is not None, "the connection has not been made"
        return self._transport

    # --- refusing where there is no request

    def _refuse_head(self) -> None:
        self._refuse(431, f"the request head is larger than {self._limits.max_head_bytes} bytes")

    def _refuse(self, status: int, message: str) -> None:
        if self._is_closed:
            return
        if self._answering is not None:  # that comes first, and nothing behind it
            self._answering.keeps_alive = False
            return
        kind, code = ("server_error", "internal") if status == 500 else ("invalid_request_error", "bad_http")
        body = encode_json(ErrorBody(ErrorObject(message, kind, None, code)))
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\n" % (status, _REASONS[status])
        self.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        self.close()


def _path_of(url: bytes) -> str:
    if not url.startswith(b"/") or b"?" in url or b"#" in url:
        with contextlib.suppress(HttpParserInvalidURLError):  # `OPTIONS *`: no route has this name
            url = parse_url(url).path or b"/"
    if b"%" in url:
        return unquote_to_bytes(url).decode("utf-8", "replace")
    return url.decode("latin-1")


def _body_framing(headers: dict[bytes, bytes]) -> bytes | None:
    """The header that says how long the body is; None without a body."""
    if b"transfer-encoding" in headers:
        return b"transfer-encoding: " + headers[b"transfer-encoding"]
    length = headers.get(b"content-length", b"0")
    return None if length == b"0" else b"content-length: " + length
