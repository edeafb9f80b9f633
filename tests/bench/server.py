"""A server that says exactly what a test tells it to, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dynamo_sdk.bench.target import Target


@dataclass(slots=True)
class Seen:
    """``heads``: of all requests; ``ended``: one item for each connection that its client closed."""

    heads: list[bytes] = field(default_factory=list)
    ended: asyncio.Queue[None] = field(default_factory=asyncio.Queue)


Respond = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(respond: Respond) -> AsyncIterator[tuple[Target, Seen]]:
    """``respond(number, writer)`` answers the n-th request, from 0. Yields the target and what was seen;
    a connection stays open until ``respond`` closes it."""
    seen = Seen()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                seen.heads.append(head)
                await respond(len(seen.heads) - 1, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            seen.ended.put_nowait(None)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Target.parse(f"http://127.0.0.1:{port}"), seen
    finally:
        server.close()
        await server.wait_closed()


def whole(body: bytes, status: str = "200 OK") -> bytes:
    """A response with its length."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(*pieces: bytes) -> bytes:
    """A response in chunks."""
    body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in (*pieces, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
