"""``Acceptor``: where block servers listen. Whoever connects proves the shared secret, then it is served."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from dynamo_sdk.errors import ConnectionLost, HandshakeError, ProtocolError, WireError

from . import wire
from .address import (
    UNSPECIFIED_HOSTS,
    Address,
    TcpAddress,
    UnixAddress,
    bound_address,
    listen,
    parse_address,
    prepare,
)

logger = logging.getLogger(__name__)

RETRY_S = 0.1
"""The pause after a connection could not be accepted."""


class Acceptor:
    """``serve`` gets each connection after the handshake. It may raise ``WireError`` and ``OSError``, which
    ends the connection, as its return does. ``peer``: what connects, for the log.

    A new connection must introduce itself within ``handshake_s``; beyond ``max_connections`` it is closed at
    once. ``secret`` is asked of TCP connections; socket files are protected by their mode.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket], Awaitable[None]],
        *,
        peer: str,
        secret: bytes | None,
        handshake_s: float,
        max_connections: int,
    ) -> None:
        self._serve_connection = serve
        self._peer = peer
        self._secret = secret
        self._handshake_s = handshake_s
        self._max_connections = max_connections
        self._listeners: list[socket.socket] = []
        self._is_accepting = False
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def num_connections(self) -> int:
        return len(self._serving)

    async def start(self, addresses: Sequence[str], *, advertise_host: str | None = None) -> tuple[str, ...]:
        """Listen on ``unix:/path`` or ``tcp:host:port`` (port 0: a free one), and return where others reach
        it, with real ports, in the same order.

        ``advertise_host``: the name under which others reach the TCP ones; needed when they listen on all
        interfaces. Raises ``ValueError`` for addresses that mean nothing, ``OSError`` for those in use.
        """
        parsed = [parse_address(text) for text in addresses]
        for address in parsed:
            if isinstance(address, TcpAddress) and address.host in UNSPECIFIED_HOSTS and not advertise_host:
                raise ValueError(
                    f"{address} listens on all interfaces; say advertise_host, others need one name"
                )
        try:
            await asyncio.to_thread(self._listen, parsed)
        except BaseException:
            await asyncio.to_thread(self._close_listeners)
            raise
        self._is_accepting = True
        for listener in self._listeners:
            self._wait_for(listener)
        return tuple(
            str(bound_address(listener, advertise_host=advertise_host)) for listener in self._listeners
        )

    async def close(self) -> None:
        """End every connection and wait for its end. Idempotent."""
        if self._is_accepting:
            self._is_accepting = False
            for listener in self._listeners:
                asyncio.get_running_loop().remove_reader(listener)
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.to_thread(self._close_listeners)

    def _wait_for(self, listener: socket.socket) -> None:
        if self._is_accepting:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """A plain call: an accepted connection never waits in a future that ``close`` may have cancelled."""
        try:
            connected, _ = listener.accept()
        except (BlockingIOError, InterruptedError):  # who knocked has left
            return
        except OSError as error:  # out of file descriptors, or a peer that left while it was waiting
            logger.warning("accepting a %s failed: %s", self._peer, error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(RETRY_S, self._wait_for, listener)
            return
        if len(self._serving) >= self._max_connections:
            logger.warning("a %s was turned away: %d connections are open", self._peer, len(self._serving))
            connected.close()
            return
        task = asyncio.create_task(self._serve(connected))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(lambda _: connected.close())  # also when it was cancelled before it began

    async def _serve(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        try:
            prepare(connected)
            async with asyncio.timeout(self._handshake_s):
                await self._shake_hands(connected)
            await self._serve_connection(connected)
        except (ConnectionLost, OSError) as error:  # TimeoutError is an OSError
            logger.debug("a %s left: %s", self._peer, error)
        except WireError as error:
            logger.warning("a %s was turned away: %s", self._peer, error)

    async def _shake_hands(self, connected: socket.socket) -> None:
        secret = None if connected.family == socket.AF_UNIX else self._secret
        greeting = wire.greet(secret)
        await send_frame(connected, wire.frame(greeting))
        introduction = wire.decode_from_fetcher(await receive_frame(connected))
        if not isinstance(introduction, wire.Introduction):
            raise ProtocolError(f"expected Introduction, got {type(introduction).__name__}")
        try:
            answer = wire.welcome(greeting, introduction, secret)
        except HandshakeError as error:
            await send_frame(connected, wire.frame(wire.Refused(error.code, error.message)))
            raise
        await send_frame(connected, wire.frame(answer))

    def _listen(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._listeners.append(listen(address))

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            address = bound_address(listener, advertise_host=None)
            listener.close()
            if isinstance(address, UnixAddress):
                Path(address.path).unlink(missing_ok=True)
        self._listeners.clear()


async def send_frame(connected: socket.socket, frame: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connected, frame)


async def receive_frame(connected: socket.socket) -> bytearray:
    """The body of the next frame. Raises ``ConnectionLost``, ``FrameTooLarge``."""
    head = await _receive_exactly(connected, wire.HEAD_BYTES)
    return await _receive_exactly(connected, wire.body_bytes(head))


async def _receive_exactly(connected: socket.socket, num_bytes: int) -> bytearray:
    loop = asyncio.get_running_loop()
    buffer = bytearray(num_bytes)
    view = memoryview(buffer)
    while view:
        received = await loop.sock_recv_into(connected, view)
        if received == 0:
            raise ConnectionLost("the other side closed the connection")
        view = view[received:]
    return buffer
