"""Where a block server listens: ``unix:/path`` or ``tcp:host:port`` (``tcp:[::1]:7000`` for IPv6)."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNSPECIFIED_HOSTS = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


Address = UnixAddress | TcpAddress
Place = Any  # what ``socket.connect`` takes: a path, or a tuple that depends on the family


def parse_address(text: str) -> Address:
    """Raises ``ValueError``."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        return UnixAddress(rest)
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and port.isdecimal():
        return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))
    raise ValueError(f"not an address: {text!r}; write unix:/path or tcp:host:port")


def listen(address: Address, *, backlog: int = 128) -> socket.socket:
    """A listening, non-blocking socket. Raises ``OSError``. A socket file is readable by its owner only."""
    if isinstance(address, TcpAddress):
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError:
            listener.close()
            raise
    else:
        _remove_dead_socket(address.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(address.path)
            Path(address.path).chmod(0o600)
        except OSError:
            listener.close()
            raise
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def bound_address(listener: socket.socket, *, advertise_host: str | None) -> Address:
    """What others connect to. ``advertise_host`` replaces the host of a TCP listener."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return UnixAddress(name)
    return TcpAddress(advertise_host or name[0], name[1])


def socket_for(address: Address) -> tuple[socket.socket, Place]:
    """A fresh socket, and the place to connect it to. May look a host name up. Raises ``OSError``."""
    if isinstance(address, UnixAddress):
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), address.path
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    )[0]
    return socket.socket(family, kind, protocol), place


def connect(fresh: socket.socket, place: Place) -> None:
    """Within the socket's time-out. Raises ``OSError``."""
    fresh.connect(place)
    prepare(fresh)


def prepare(connected: socket.socket) -> None:
    """Small frames leave at once; a peer that vanished without a word is noticed within a minute."""
    if connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def shut(connected: socket.socket) -> None:
    """End the connection for both sides and wake whoever waits on it, on any thread. Idempotent."""
    with contextlib.suppress(OSError):  # not connected any more, which is what we want
        connected.shutdown(socket.SHUT_RDWR)


def _remove_dead_socket(path: str) -> None:
    """A killed server leaves its socket file behind; nobody answers there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
    except OSError:
        return
