"""Ordered, reliable byte pipes between processes: Unix sockets on one host, TCP across hosts.

An address is a string: ``unix:/path/to/socket`` or ``tcp:host:port`` (port 0 takes a free one).
The in-memory twin is in ``memory``; everything above knows only these two classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from dynamo_sdk.errors import ConfigError, ConnectionLost

HIGH_WATER_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 10.0


class Channel(ABC):
    """One end of a pipe. Bytes arrive through ``on_data``, the end of the pipe through ``on_close``, once."""

    on_data: Callable[[bytes], None]
    on_close: Callable[[], None]

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Queue bytes; never blocks; ignored after the pipe has closed."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Return at once while the peer keeps up, else when it has caught up or the pipe has closed."""

    @abstractmethod
    def is_writable(self) -> bool: ...

    @abstractmethod
    def close(self) -> None:
        """Close after what is queued was written. Idempotent. ``on_close`` follows."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once. Idempotent. ``on_close`` follows."""


class Listener(ABC):
    """A listening address. ``address`` is the real one (port 0 resolved)."""

    address: str

    @abstractmethod
    async def close(self) -> None:
        """Stop accepting; accepted channels live on. Idempotent."""


class Network(ABC):
    """Where channels come from."""

    @abstractmethod
    async def listen(self, address: str, accept: Callable[[Channel], None]) -> Listener:
        """``accept`` must set ``on_data`` and ``on_close`` before it returns."""

    @abstractmethod
    async def connect(
        self, address: str, on_data: Callable[[bytes], None], on_close: Callable[[], None]
    ) -> Channel:
        """Raises ``ConnectionLost`` when nobody answers there."""


class _SocketChannel(Channel, asyncio.Protocol):
    def __init__(self, accept: Callable[[Channel], None] | None = None) -> None:
        self._accept = accept
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but inheritance.
        self._transport = stream = cast(asyncio.Transport, transport)
        stream.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        raw = stream.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _notice_dead_host(raw)
        if self._accept is not None:
            self._accept(self)

    def data_received(self, data: bytes) -> None:
        self.on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self.on_close()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def wait_writable(self) -> None:
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def is_writable(self) -> bool:
        return self._writable is None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _SocketListener(Listener):
    def __init__(self, server: asyncio.Server, address: str, path: str | None) -> None:
        self.address = address
        self._server = server
        self._path = path

    async def close(self) -> None:
        self._server.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._path = None


class SocketNetwork(Network):
    """Real sockets on the running event loop."""

    async def listen(self, address: str, accept: Callable[[Channel], None]) -> Listener:
        loop = asyncio.get_running_loop()
        kind, host, port = parse_address(address)
        try:
            if kind == "unix":
                server = await loop.create_unix_server(lambda: _SocketChannel(accept), host)
                return _SocketListener(server, address, host)
            server = await loop.create_server(lambda: _SocketChannel(accept), host, port)
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from error
        return _SocketListener(server, f"tcp:{host}:{server.sockets[0].getsockname()[1]}", None)

    async def connect(
        self, address: str, on_data: Callable[[bytes], None], on_close: Callable[[], None]
    ) -> Channel:
        loop = asyncio.get_running_loop()
        kind, host, port = parse_address(address)

        def build() -> _SocketChannel:
            channel = _SocketChannel()
            channel.on_data, channel.on_close = on_data, on_close
            return channel

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if kind == "unix":
                    _, channel = await loop.create_unix_connection(build, host)
                else:
                    _, channel = await loop.create_connection(build, host, port)
        except (OSError, TimeoutError) as error:
            raise ConnectionLost(f"nobody answers at {address}: {str(error) or 'timed out'}") from error
        return channel


def _notice_dead_host(raw: socket.socket) -> None:
    """A host that loses its power sends no farewell: ask it after 15 s of silence, every 5 s, 3 times."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def parse_address(address: str) -> tuple[str, str, int]:
    """``unix:/path`` -> ("unix", path, 0); ``tcp:h:port`` -> ("tcp", h, port). Raises ``ConfigError``."""
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest:
        return kind, rest, 0
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdigit() and int(port) < 65536:
        return kind, host.strip("[]"), int(port)
    raise ConfigError(f"'{address}' is no address; write unix:/path/to/socket or tcp:host:port")


def is_loopback(address: str) -> bool:
    """Whether only this host can reach ``address``."""
    kind, host, _ = parse_address(address)
    return kind == "unix" or host in {"localhost", "::1"} or host.startswith("127.")
