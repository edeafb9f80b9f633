"""One HTTP request and its answer, on plain ASGI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import getrandbits
from typing import Any

import msgspec

from dynamo_sdk.errors import BodyTooLarge, Overloaded

from .errors import BodyTimeout, UnsupportedEncoding, to_http
from .limits import HttpLimits

Scope = Mapping[str, Any]
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_LINGER_S = 2.0
"""How long to go on reading a body that was refused."""

_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}\Z")
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks a reverse proxy not to collect the stream
]
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


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


class Exchange:
    """Reads the body within the limits, writes one answer, and knows how far that answer got."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, limits: HttpLimits, budget: BodyBudget
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.limits = limits
        self.request_id = self._request_id()
        self.status: int | None = None
        """Of the answer, once its head is sent."""
        self.is_streaming = False
        self.is_answered = False
        """The last byte of the answer has been handed to the server."""
        self._budget = budget
        self._num_body_bytes = 0
        self._receive = receive
        self._send = send
        self._is_body_read = self.method not in ("POST", "PUT", "PATCH")

    def _request_id(self) -> str:
        given = self.headers.get(b"x-request-id", b"")
        return given.decode("ascii") if _SANE_ID.match(given) else f"{getrandbits(128):032x}"

    # --- the request

    async def read_body(self) -> bytes:
        """Raises ``BodyTooLarge``, ``BodyTimeout``, ``UnsupportedEncoding``, ``Overloaded`` or
        ``ClientGone``."""
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding.lower() not in (b"identity", b""):
            raise UnsupportedEncoding(
                f"content-encoding is {encoding[:40].decode('latin-1')!r}; allowed is a plain body only",
                param="content-encoding",
            )
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self.limits.max_body_bytes:
            raise self._too_large(f"{declared[:20].decode()} bytes")
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                while not self._is_body_read:
                    piece = await self._next_piece()
                    if self._num_body_bytes + len(piece) > self.limits.max_body_bytes:
                        raise self._too_large("longer")
                    self._budget.take(len(piece))
                    self._num_body_bytes += len(piece)
                    pieces.append(piece)
        except TimeoutError:
            raise BodyTimeout(
                f"the request body did not arrive within {self.limits.body_timeout_s:g} seconds"
            ) from None
        return b"".join(pieces)

    def close(self) -> None:
        """The request is over; its body no longer counts."""
        self._budget.give_back(self._num_body_bytes)
        self._num_body_bytes = 0

    async def _next_piece(self) -> bytes:
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        self._is_body_read = not event.get("more_body", False)
        body: bytes = event.get("body", b"")
        return body

    def _too_large(self, how_large: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"the request body is {how_large}; allowed are at most {self.limits.max_body_bytes} bytes"
        )

    async def _discard_body(self) -> None:
        """Read on for a moment, so that a client still sending gets to read the answer, not a reset."""
        num_left = 2 * self.limits.max_body_bytes
        try:
            async with asyncio.timeout(min(_LINGER_S, self.limits.body_timeout_s)):
                while not self._is_body_read and num_left > 0:
                    num_left -= len(await self._next_piece())
        except (TimeoutError, ClientGone):
            pass

    async def wait_disconnect(self) -> None:
        """Return when the client has gone, or the answer is complete. Only after ``read_body``."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # --- the answer

    async def send_json(
        self, content: object, *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """``content``: anything msgspec can encode, or bytes that are JSON already."""
        body = content if isinstance(content, bytes) else _encode(content)
        await self.send_bytes(body, content_type=b"application/json", status=status, headers=headers)

    async def send_bytes(
        self,
        body: bytes,
        *,
        content_type: bytes,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        if self._is_body_read:
            await self._send_head(status, head)
            self.is_answered = True
            await self._send({"type": "http.response.body", "body": body})
            return
        await self._send_head(status, [*head, (b"connection", b"close")])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        await self._discard_body()
        self.is_answered = True
        await self._send({"type": "http.response.body", "body": b""})

    async def send_error(self, error: Exception) -> None:
        answer = to_http(error)
        await self.send_json(answer.body, status=answer.status, headers=answer.headers)

    async def start_stream(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.is_streaming = True
        await self._send_head(200, [*_SSE_HEADERS, *headers])

    async def send_events(self, events: bytes) -> None:
        """Complete SSE events, in one write. Waits while the client is slow to read."""
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end_stream(self, events: bytes) -> None:
        self.is_answered = True
        await self._send({"type": "http.response.body", "body": events})

    async def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        request_id = (b"x-request-id", self.request_id.encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, request_id]})
