"""One fetcher's end of the conversation with a block server (``wire``), as blocking code on a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from dynamo_sdk.errors import (
    ProtocolError,
    TicketExpired,
    TicketUnknown,
    TransferError,
    WireError,
    error_from_code,
)

from . import wire
from .address import TcpAddress, UnixAddress, connect, parse_address, shut, socket_for
from .host import HostIdentity
from .stream import receive_into
from .ticket import DirectTicket

CONNECT_S = 5.0
"""The most time spent on one address before the ticket's next one is tried."""

Answer = TypeVar("Answer", bound=wire.FromServer)


class Link:
    """``connection`` is the idle one to start with; afterwards the one to keep, or None. Only ``abort`` may
    be called from another thread; from then on every step raises and a wait on the socket ends at once."""

    def __init__(
        self,
        ticket: DirectTicket,
        connection: socket.socket | None,
        *,
        secret: bytes | None,
        deadline_s: float,
        now: Callable[[], float],
    ) -> None:
        self._ticket = ticket
        self._secret = secret
        self._deadline_s = deadline_s
        self._now = now
        self._is_aborted = False
        self._lock = threading.Lock()  # nobody shuts a socket whose number is being given back
        self.connection = connection

    def abort(self) -> None:
        """Idempotent."""
        with self._lock:
            self._is_aborted = True
            if self.connection is not None:
                shut(self.connection)

    def open(self, host: HostIdentity) -> socket.socket:
        """The connection, made to the first address that answers where there is none. Raises
        ``TransferError``."""
        return self.connection or self._connect(host)

    def send(self, message: wire.FromFetcher) -> None:
        assert self.connection is not None
        self.connection.settimeout(self.remaining_s())
        self.connection.sendall(wire.frame(message))

    def receive(self, expected: type[Answer]) -> Answer:
        """The next message. A refusal is raised as what it says."""
        assert self.connection is not None
        head = bytearray(wire.HEAD_BYTES)
        receive_into(self.connection, memoryview(head), self.remaining_s)
        body = bytearray(wire.body_bytes(head))
        receive_into(self.connection, memoryview(body), self.remaining_s)
        message = wire.decode_from_server(body)
        if isinstance(message, wire.Refused):
            error = error_from_code(message.code, message.message)
            raise error if isinstance(error, TransferError | WireError) else TransferError(str(error))
        if not isinstance(message, expected):
            raise ProtocolError(f"expected {expected.__name__}, got {type(message).__name__}")
        return message

    def remaining_s(self) -> float:
        """Seconds left, positive. Raises ``TransferError`` once aborted or out of time."""
        if (interruption := self._interruption()) is not None:
            raise interruption
        return max(self._deadline_s - self._now(), 0.001)  # zero would mean not to wait at all

    def failure(self, error: Exception) -> TransferError:
        """What to tell the caller, after closing the connection unless it is as good as before."""
        if isinstance(error, TicketExpired | TicketUnknown):
            return error
        self._hang_up()
        if isinstance(error, TransferError):
            return error
        if isinstance(error, OSError | WireError):
            return self._interruption() or TransferError(f"fetching from {self._place()} failed: {error}")
        return TransferError(f"fetching from {self._place()} failed: {error!r}")

    def _connect(self, host: HostIdentity) -> socket.socket:
        failures = []
        for text in self._ticket.addresses:
            address = parse_address(text)
            if isinstance(address, UnixAddress) and not host.is_same_kernel(self._ticket.host):
                continue  # a path of another machine may name something else here
            try:
                self.connection, place = socket_for(address)
                # After an abort that came before there was anything to shut, this raises.
                self.connection.settimeout(min(self.remaining_s(), CONNECT_S))
                connect(self.connection, place)
                self._shake_hands(self._secret if isinstance(address, TcpAddress) else None)
                return self.connection
            except OSError as error:
                self._hang_up()
                failures.append(f"{text}: {error}")
        self.remaining_s()
        raise TransferError(
            f"no block server answers ({'; '.join(failures) or 'the ticket names no address usable here'}); "
            "prefill again"
        )

    def _shake_hands(self, secret: bytes | None) -> None:
        greeting = self.receive(wire.Greeting)
        introduction = wire.introduce(greeting, secret)
        self.send(introduction)
        wire.check_welcome(greeting, introduction, self.receive(wire.Welcome), secret)

    def _interruption(self) -> TransferError | None:
        if self._is_aborted:
            return TransferError(f"fetching from {self._place()} was cancelled")
        if self._deadline_s <= self._now():
            return TransferError(f"fetching from {self._place()} did not end in time; prefill again")
        return None

    def _hang_up(self) -> None:
        with self._lock:
            if self.connection is not None:
                self.connection.close()
            self.connection = None

    def _place(self) -> str:
        return self._ticket.addresses[0] if self._ticket.addresses else "nowhere"
