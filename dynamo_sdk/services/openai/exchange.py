"""One HTTP request and its answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from http import HTTPStatus
from random import getrandbits
from typing import Protocol

import msgspec

from dynamo_sdk.errors import BodyTooLarge, DynamoError, Overloaded

from .errors import UnsupportedEncoding, to_http
from .limits import HttpLimits

_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}\Z")
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_SSE_HEADERS = (
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\n"  # asks a reverse proxy not to collect the stream
)
_encode = msgspec.json.Encoder().encode

Headers = Iterable[tuple[bytes, bytes]]


class BodyBudget:
    """The bytes that the bodies of all requests may take together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises ``Overloaded`` when there is no room; then nothing is taken."""
        if self._used_bytes + num_bytes > self._limit_bytes:
            raise Overloaded("the requests being served are too large together; try again later")
        self._used_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self._used_bytes -= num_bytes


class AnswerWriter(Protocol):
    """Where an answer goes: the connection."""

    def write(self, data: bytes) -> None:
        """Send; into the void when the client has gone."""

    @property
    def is_writable(self) -> bool: ...

    async def wait_writable(self) -> None: ...

    def answered(self, exchange: Exchange) -> None:
        """The last byte was written."""


class Exchange:
    """Collects the body within the limits, writes one answer, and knows how far that answer got."""

    __slots__ = (
        "_budget",
        "_is_chunked",
        "_is_http_1_0",
        "_limits",
        "_num_body_bytes",
        "_pieces",
        "_writer",
        "body",
        "has_expired",
        "headers",
        "is_answered",
        "is_gone",
        "is_streaming",
        "keeps_alive",
        "method",
        "path",
        "refusal",
        "request_id",
        "status",
        "task",
    )

    def __init__(
        self,
        writer: AnswerWriter,
        *,
        method: str,
        path: str,
        headers: dict[bytes, bytes],
        limits: HttpLimits,
        budget: BodyBudget,
        is_http_1_0: bool = False,
        keeps_alive: bool = True,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = b""
        """Whole, once ``begin`` was called."""
        self.request_id = self._request_id()
        self.refusal: DynamoError | None = None
        """Why the body is not read, or not to its end."""
        self.task: asyncio.Task[None] | None = None
        """Works on the answer."""
        self.status: int | None = None
        """Of the answer, once its head is sent."""
        self.is_streaming = False
        self.is_answered = False
        """The last byte of the answer is on its way."""
        self.is_gone = False
        """The client has closed its connection; nobody reads an answer."""
        self.has_expired = False
        self.keeps_alive = keeps_alive and not is_http_1_0
        self._is_http_1_0 = is_http_1_0
        self._is_chunked = False
        self._writer = writer
        self._limits = limits
        self._budget = budget
        self._num_body_bytes = 0
        self._pieces: list[bytes] = []
        self._judge_headers()

    def _request_id(self) -> str:
        given = self.headers.get(b"x-request-id", b"")
        return given.decode("ascii") if _SANE_ID.match(given) else f"{getrandbits(128):032x}"

    # --- the request

    def _judge_headers(self) -> None:
        encoding = self.headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() not in (b"identity", b""):
            self.refusal = UnsupportedEncoding(
                f"content-encoding is {encoding[:40].decode('latin-1')!r}; allowed is a plain body only",
                param="content-encoding",
            )
        declared = self.headers.get(b"content-length", b"0")[:20]
        if declared.isdigit() and int(declared) > self._limits.max_body_bytes:
            self._refuse_size(f"{declared.decode()} bytes")

    def take_body(self, piece: bytes) -> bool:
        """False when it is too much, and so refused."""
        if self._num_body_bytes + len(piece) > self._limits.max_body_bytes:
            self._refuse_size("longer")
            return False
        try:
            self._budget.take(len(piece))
        except Overloaded as error:
            self.refusal = error
            return False
        self._num_body_bytes += len(piece)
        self._pieces.append(piece)
        return True

    def begin(self) -> None:
        """The body is there."""
        pieces, self._pieces = self._pieces, []
        self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def leave(self) -> None:
        """The client has gone: end the work for it."""
        self.is_gone = True
        self._cancel()

    def expire(self) -> None:
        """There is no time left: end the work."""
        self.has_expired = True
        self._cancel()

    def close(self) -> None:
        """The request is over; its body no longer counts."""
        self._budget.give_back(self._num_body_bytes)
        self._num_body_bytes = 0
        self.task = None

    def _cancel(self) -> None:
        if self.task is not None and not self.is_answered:
            self.task.cancel()

    def _refuse_size(self, how_large: str) -> None:
        self.refusal = BodyTooLarge(
            f"the request body is {how_large}; allowed are at most {self._limits.max_body_bytes} bytes"
        )

    # --- the answer

    def send_json(self, content: object, *, status: int = 200, headers: Headers = ()) -> None:
        """``content``: anything msgspec can encode, or bytes that are JSON already."""
        body = content if isinstance(content, bytes) else _encode(content)
        self.send_bytes(body, content_type=b"application/json", status=status, headers=headers)

    def send_bytes(
        self, body: bytes, *, content_type: bytes, status: int = 200, headers: Headers = ()
    ) -> None:
        head = b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body))
        self._finish(self._head(status, head, headers) + (b"" if self.method == "HEAD" else body))

    def send_error(self, error: Exception) -> None:
        answer = to_http(error)
        self.send_json(answer.body, status=answer.status, headers=answer.headers)

    @property
    def is_writable(self) -> bool:
        """The client is not far behind in reading. What is sent nevertheless waits in memory."""
        return self._writer.is_writable

    async def wait_writable(self) -> None:
        await self._writer.wait_writable()

    def start_stream(self, events: bytes, headers: Headers = ()) -> None:
        """The first events, behind the head."""
        self.is_streaming = True
        self._is_chunked = not self._is_http_1_0  # without chunks, the end of the connection ends it
        framing = b"transfer-encoding: chunked\r\n" if self._is_chunked else b""
        self._writer.write(self._head(200, _SSE_HEADERS + framing, headers) + self._framed(events))

    def send_events(self, events: bytes) -> None:
        """Complete SSE events, in one write."""
        self._writer.write(self._framed(events))

    def end_stream(self, events: bytes, headers: Headers = ()) -> None:
        """The last events; the only ones if the stream has not started."""
        if not self.is_streaming:
            self.start_stream(b"", headers)
        self._finish(self._framed(events) + (b"0\r\n\r\n" if self._is_chunked else b""))

    def _framed(self, events: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(events), events) if self._is_chunked and events else events

    def _head(self, status: int, head: bytes, headers: Headers) -> bytes:
        self.status = status
        if self.refusal is not None:
            self.keeps_alive = False
        return b"%b%bx-request-id: %b\r\n%b%b\r\n" % (
            _STATUS_LINES[status],
            head,
            self.request_id.encode(),
            b"".join([b"%b: %b\r\n" % header for header in headers]) if headers else b"",
            b"" if self.keeps_alive else b"connection: close\r\n",
        )

    def _finish(self, data: bytes) -> None:
        self._writer.write(data)
        self.is_answered = True
        self._writer.answered(self)
