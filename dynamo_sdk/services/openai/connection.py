"""uvicorn's HTTP/1.1 connection with bounds where it has none.

uvicorn leaves to others: how long a request head may take and how large it may be (also trailers and
chunk extensions), how long a client may leave an answer unread, and telling a request that is still being
answered, when another was pipelined behind it, that the client has gone. It also loses the body of a
request that offers an upgrade, as Java's HTTP client does with each first request (``h2c``).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any, ClassVar, cast

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .errors import ErrorBody, ErrorObject
from .limits import HttpLimits
from .sse import encode_json

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedConnection(HttpToolsProtocol):
    """Use through ``bounded_connection``, which sets the limits."""

    limits: ClassVar[HttpLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_unparsed_bytes = 0
        self._head_timer = _Timer()
        self._stall_timer = _Timer()
        self._answering: RequestResponseCycle | None = None
        self._received = self._unread = b""
        self._body_framing: bytes | None = None
        self._is_replaying_head = False

    # --- connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))  # uvloop's is one in all but inheritance
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.max_connections:
            transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.stop()
        self._stall_timer.stop()
        self.pipeline.clear()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        self._answering = None
        super().connection_lost(exc)

    # --- reading

    def data_received(self, data: bytes) -> None:
        self._num_unparsed_bytes += len(data)
        while data:
            self._received, self._unread = data, b""
            super().data_received(data)
            data = self._unread
        if self.transport.is_closing():
            return
        # Heads, trailers and chunk extensions grow this; a whole head or a piece of a body resets it.
        if self._num_unparsed_bytes > self.limits.max_head_bytes:
            self._refuse(431, f"the request head is larger than {self.limits.max_head_bytes} bytes")
        elif not self._head_timer.is_running and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def on_message_begin(self) -> None:
        if not self._is_replaying_head:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_replaying_head:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_replaying_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_replaying_head:
            return
        self._num_unparsed_bytes = 0
        self._head_timer.stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_unparsed_bytes = 0
        if self.parser.should_upgrade():
            self._body_framing = _body_framing(self.headers)
            if self._body_framing is not None:
                return  # the parser skips the body of an upgrade, so the message is not complete
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """The parser has stopped behind a head that offers an upgrade. Go on without: a new parser is
        shown how the body is framed, if there is one, and then all that has not been read."""
        stopped = sys.exc_info()[1]
        if isinstance(stopped, HttpParserUpgrade):
            self._unread = self._received[stopped.args[0] :]
        self.parser = HttpRequestParser(self)
        framing, self._body_framing = self._body_framing, None
        if framing is not None:
            self._is_replaying_head = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
            self._is_replaying_head = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _expect_head(self) -> None:
        self._head_timer.start(self.limits.head_timeout_s, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._refuse(408, f"no request head arrived within {self.limits.head_timeout_s:g} seconds")

    # --- writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer.start(self.limits.write_stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stall_timer.stop()
        super().resume_writing()

    # --- refusing before there is a request

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        is_answering = self._answering is not None and self._answering.response_started
        if not is_answering or (self._answering and self._answering.response_complete):
            body = encode_json(ErrorBody(ErrorObject(message, "invalid_request_error", None, "bad_http")))
            head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\n" % (status, _REASONS[status])
            self.transport.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        self.transport.close()


def bounded_connection(limits: HttpLimits) -> type[BoundedConnection]:
    """The connection class for one server."""
    return type("LimitedConnection", (BoundedConnection,), {"limits": limits})


def _body_framing(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The header that says how long the body is; None without a body."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return name + b": " + value
    return None


class _Timer:
    """Calls back once, unless it is stopped before."""

    __slots__ = ("_handle",)

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.stop()

        def fire() -> None:
            self._handle = None
            callback()

        self._handle = asyncio.get_running_loop().call_later(delay_s, fire)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
