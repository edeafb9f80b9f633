"""One fetch, start to end, as plain blocking code on a thread of its own.

The event loop only starts it and may ``abort`` it; from then on every step raises, a wait on the socket
ends at once and a copy at the end of its present piece.
"""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from dynamo_sdk.errors import (
    ProtocolError,
    TicketExpired,
    TicketUnknown,
    TransferError,
    WireError,
    error_from_code,
)
from dynamo_sdk.interfaces import BlockMemory

from . import wire
from .address import TcpAddress, UnixAddress, connect, parse_address, shut, socket_for
from .copying import copy_blocks
from .host import HostIdentity, host_identity
from .region import Mappings
from .stream import receive_blocks, receive_into
from .ticket import DirectTicket

CONNECT_S = 5.0
"""The most time spent on one address before the ticket's next one is tried."""

BackEnd = Literal["shm", "unix", "tcp"]

Answer = TypeVar("Answer", bound=wire.FromServer)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What one fetch moved. ``back_end``: mapped memory, or a stream through that kind of socket."""

    num_blocks: int
    num_bytes: int
    duration_s: float
    back_end: BackEnd


class Exchange:
    """Fetch what one ticket grants. ``run`` once, on a thread; ``abort`` from any other.

    ``connection`` is the idle one to start with; after ``run`` it is the one to keep, or None.
    """

    def __init__(
        self,
        ticket: DirectTicket,
        pairs: Sequence[tuple[int, int]],
        into: BlockMemory,
        *,
        host: HostIdentity | None,
        peer_mappings: Mappings,
        own_mappings: Mappings,
        connection: socket.socket | None,
        secret: bytes | None,
        deadline_s: float,
        now: Callable[[], float],
    ) -> None:
        self._ticket = ticket
        self._pairs = pairs
        self._into = into
        self._given_host = host
        self._peer_mappings = peer_mappings
        self._own_mappings = own_mappings
        self._secret = secret
        self._deadline_s = deadline_s
        self._now = now
        self._is_aborted = False
        self._lock = threading.Lock()  # nobody shuts a socket whose number is being given back
        self.connection = connection

    def abort(self) -> None:
        """Make ``run`` raise soon. Idempotent."""
        with self._lock:
            self._is_aborted = True
            if self.connection is not None:
                shut(self.connection)

    def run(self) -> TransferReport:
        """Raises ``TransferError``; then the blocks of ``pairs`` hold nothing of worth."""
        started_s = self._now()
        try:
            back_end = self._fetch()
        except Exception as error:
            # The frames of a traceback that lives on would keep the memory of a dead peer mapped.
            traceback.clear_frames(error.__traceback__)
            failure = self._failure(error)
            if failure is error:
                raise
            raise failure from error
        return TransferReport(
            num_blocks=len(self._pairs),
            num_bytes=len(self._pairs) * self._into.layout.block_bytes,
            duration_s=self._now() - started_s,
            back_end=back_end,
        )

    @property
    def _host(self) -> HostIdentity:
        return self._given_host or host_identity()  # reads files, hence here on the thread

    def _fetch(self) -> BackEnd:
        if self.connection is None:
            self._connect()
        assert self.connection is not None
        peer_memory = None
        if self._ticket.region is not None and self._host.can_share_memory(self._ticket.host):
            peer_memory = self._peer_mappings.map(self._ticket.region)
        own_memory = self._own_mappings.map_own(self._into)
        if peer_memory is None:
            self._send(wire.Claim(self._ticket.ticket_id, [index for index, _ in self._pairs]))
            self._receive(wire.Claimed)
            receive_blocks(self.connection, self._into, own_memory, self._own_ids(), self._remaining_s)
        else:
            self._send(wire.Claim(self._ticket.ticket_id, []))
            source_ids = [self._ticket.block_ids[index] for index, _ in self._pairs]
            copy_blocks(peer_memory, source_ids, self._into, own_memory, self._own_ids(), self._remaining_s)
            self._receive(wire.Claimed)
        self._send(wire.Done())
        self._receive(wire.Released)
        if peer_memory is not None:
            return "shm"
        return "unix" if self.connection.family == socket.AF_UNIX else "tcp"

    def _own_ids(self) -> list[int]:
        return [block_id for _, block_id in self._pairs]

    def _connect(self) -> None:
        """The first address that answers. Raises ``TransferError``."""
        failures = []
        for text in self._ticket.addresses:
            address = parse_address(text)
            if isinstance(address, UnixAddress) and not self._host.is_same_kernel(self._ticket.host):
                continue  # a path of another machine may name something else here
            try:
                self.connection, place = socket_for(address)
                # After an abort that came before there was anything to shut, this raises.
                self.connection.settimeout(min(self._remaining_s(), CONNECT_S))
                connect(self.connection, place)
                self._shake_hands(self._secret if isinstance(address, TcpAddress) else None)
                return
            except OSError as error:
                self._hang_up()
                failures.append(f"{text}: {error}")
        self._remaining_s()
        raise TransferError(
            f"no block server answers ({'; '.join(failures) or 'the ticket names no address usable here'}); "
            "prefill again"
        )

    def _shake_hands(self, secret: bytes | None) -> None:
        greeting = self._receive(wire.Greeting)
        introduction = wire.introduce(greeting, secret)
        self._send(introduction)
        wire.check_welcome(greeting, introduction, self._receive(wire.Welcome), secret)

    def _send(self, message: wire.FromFetcher) -> None:
        assert self.connection is not None
        self.connection.settimeout(self._remaining_s())
        self.connection.sendall(wire.frame(message))

    def _receive(self, expected: type[Answer]) -> Answer:
        """The next message. A refusal is raised as what it says."""
        assert self.connection is not None
        head = bytearray(wire.HEAD_BYTES)
        receive_into(self.connection, memoryview(head), self._remaining_s)
        body = bytearray(wire.body_bytes(head))
        receive_into(self.connection, memoryview(body), self._remaining_s)
        message = wire.decode_from_server(body)
        if isinstance(message, wire.Refused):
            error = error_from_code(message.code, message.message)
            raise error if isinstance(error, TransferError | WireError) else TransferError(str(error))
        if not isinstance(message, expected):
            raise ProtocolError(f"expected {expected.__name__}, got {type(message).__name__}")
        return message

    def _remaining_s(self) -> float:
        """Seconds left, positive. Raises ``TransferError`` once aborted or out of time."""
        if (interruption := self._interruption()) is not None:
            raise interruption
        return max(self._deadline_s - self._now(), 0.001)  # zero would mean not to wait at all

    def _interruption(self) -> TransferError | None:
        if self._is_aborted:
            return TransferError(f"fetching from {self._place()} was cancelled")
        if self._deadline_s <= self._now():
            return TransferError(f"fetching from {self._place()} did not end in time; prefill again")
        return None

    def _failure(self, error: Exception) -> TransferError:
        """What to tell the caller, after closing the connection unless it is as good as before."""
        if isinstance(error, TicketExpired | TicketUnknown):
            return error
        self._hang_up()
        if isinstance(error, TransferError):
            return error
        if isinstance(error, OSError | WireError):
            return self._interruption() or TransferError(f"fetching from {self._place()} failed: {error}")
        return TransferError(f"fetching from {self._place()} failed: {error!r}")

    def _hang_up(self) -> None:
        with self._lock:
            if self.connection is not None:
                self.connection.close()
            self.connection = None

    def _place(self) -> str:
        return self._ticket.addresses[0] if self._ticket.addresses else "nowhere"
