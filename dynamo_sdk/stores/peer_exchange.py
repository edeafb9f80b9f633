"""One question to one peer, start to end, as plain blocking code on a thread of its own.

The event loop only starts it and may ``abort`` it. Blocks count one by one: those that came whole and agree
with their checksum stay found, whatever becomes of the rest.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import TypeVar

from dynamo_sdk.errors import ConnectionLost, ProtocolError, TransferError, error_from_code
from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.transfer import wire
from dynamo_sdk.transfer.address import TcpAddress, connect, parse_address, shut, socket_for
from dynamo_sdk.transfer.host import host_identity
from dynamo_sdk.transfer.host_copy import address_of, copy_bytes
from dynamo_sdk.transfer.region import Mappings
from dynamo_sdk.transfer.stream import receive_into, receive_scattered
from dynamo_sdk.transfer.ticket import RegionTicket

from .checksum import CHECKSUM_BYTES, block_checksum
from .peer_wire import TAKEN, Ask, blocks_per_piece, decode_answer, frame

Answer = TypeVar("Answer", bound=wire.FromServer)


class _UnmappableError(TransferError):
    """The peer's memory cannot be mapped: ask once more, for bytes."""

    def __init__(self) -> None:
        super().__init__("the peer's memory cannot be mapped")


class PeerExchange:
    """Ask the peer at ``address`` for ``keys`` (at most ``MAX_KEYS``), into buffers of equal size. ``run``
    once, on a thread; ``abort`` from any other.

    ``found``: of each key. ``num_corrupt``: blocks that came and were not what they should be.
    ``connection`` is the idle one to start with; after ``run`` it is the one to keep, or None.
    ``mappings``: of the peer's memory, None when it is not to be mapped. ``is_unmappable``: it turned out so.
    """

    def __init__(
        self,
        address: str,
        keys: Sequence[CacheKey],
        into: Sequence[memoryview],
        *,
        connection: socket.socket | None,
        mappings: Mappings | None,
        secret: bytes | None,
        timeout_s: float,
        connect_timeout_s: float,
    ) -> None:
        self._address = address
        self._keys = keys
        self._into = into
        self._mappings = mappings
        self._secret = secret
        self._deadline_s = time.monotonic() + timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._is_aborted = False
        self._lock = threading.Lock()  # nobody shuts a socket whose number is being given back
        self.connection = connection
        self.found = [False] * len(keys)
        self.num_corrupt = 0
        self.is_unmappable = False

    def abort(self) -> None:
        """Make ``run`` raise soon. Idempotent."""
        with self._lock:
            self._is_aborted = True
            if self.connection is not None:
                shut(self.connection)

    def run(self) -> None:
        """Raises ``DynamoError`` and ``OSError`` when the peer did not answer all that it was asked."""
        try:
            try:
                self._take_pieces(self._first_answer())
            except _UnmappableError:
                self.is_unmappable, self._mappings = True, None
                self._hang_up()
                self._take_pieces(self._first_answer())
        except BaseException:
            self._hang_up()
            raise

    def _first_answer(self) -> bytearray:
        """Of an idle connection, which the peer may have closed meanwhile, or else of a new one."""
        if self.connection is not None:
            try:
                return self._ask()
            except (ConnectionLost, ConnectionError):
                self._hang_up()
        self._connect()
        return self._ask()

    def _ask(self) -> bytearray:
        assert self.connection is not None
        self.connection.settimeout(self._remaining_s())
        host = host_identity() if self._mappings is not None else None
        self.connection.sendall(frame(Ask(len(self._into[0]), list(self._keys), host)))
        return self._receive()

    def _take_pieces(self, first: bytearray) -> None:
        assert self.connection is not None
        body, step = first, blocks_per_piece(len(self._into[0]))
        for start in range(0, len(self._keys), step):
            if start:
                body = self._receive()
            answer = decode_answer(body)
            if isinstance(answer, wire.Refused):
                raise error_from_code(answer.code, answer.message)
            num_keys = min(step, len(self._keys) - start)
            places = [start + place for place, is_found in enumerate(answer.found) if is_found]
            if len(answer.found) != num_keys or len(answer.checksums) != CHECKSUM_BYTES * len(places):
                raise ProtocolError(f"a peer answered {len(answer.found)} keys of {num_keys}")
            if answer.region is None:
                receive_scattered(self.connection, [self._into[at] for at in places], self._remaining_s)
            else:
                self._copy(answer.region, answer.offset, start, places)
            for number, place in enumerate(places):
                expected = answer.checksums[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES]
                self.found[place] = block_checksum(self._keys[place], self._into[place]) == expected
                self.num_corrupt += not self.found[place]
            if answer.region is not None:
                self.connection.sendall(TAKEN)

    def _copy(self, region: RegionTicket, offset: int, start: int, places: Sequence[int]) -> None:
        """Blocks of the piece that begins with key ``start``, out of the peer's memory."""
        mapped = self._mappings.map(region) if self._mappings is not None else None
        if mapped is None:
            raise _UnmappableError
        size = len(self._into[0])
        if offset < 0 or any(offset + (place - start + 1) * size > len(mapped) for place in places):
            raise ProtocolError("a peer named memory that it does not have")
        base = address_of(mapped) + offset
        for place in places:
            copy_bytes(address_of(self._into[place]), base + (place - start) * size, size)

    def _connect(self) -> None:
        address = parse_address(self._address)
        fresh, place = socket_for(address)
        with self._lock:
            self.connection = fresh
        # After an abort that came before there was anything to shut, this raises.
        fresh.settimeout(min(self._remaining_s(), self._connect_timeout_s))
        connect(fresh, place)
        secret = self._secret if isinstance(address, TcpAddress) else None
        greeting = self._handshake(wire.Greeting)
        introduction = wire.introduce(greeting, secret)
        fresh.settimeout(self._remaining_s())
        fresh.sendall(wire.frame(introduction))
        wire.check_welcome(greeting, introduction, self._handshake(wire.Welcome), secret)

    def _handshake(self, expected: type[Answer]) -> Answer:
        message = wire.decode_from_server(self._receive())
        if isinstance(message, wire.Refused):
            raise error_from_code(message.code, message.message)
        if not isinstance(message, expected):
            raise ProtocolError(f"expected {expected.__name__}, got {type(message).__name__}")
        return message

    def _receive(self) -> bytearray:
        """The body of the next frame."""
        assert self.connection is not None
        head = bytearray(wire.HEAD_BYTES)
        receive_into(self.connection, memoryview(head), self._remaining_s)
        body = bytearray(wire.body_bytes(head))
        receive_into(self.connection, memoryview(body), self._remaining_s)
        return body

    def _remaining_s(self) -> float:
        """Seconds left, positive. Raises ``TransferError`` once aborted or out of time."""
        left_s = self._deadline_s - time.monotonic()
        if self._is_aborted or left_s <= 0:
            why = "was cancelled" if self._is_aborted else "took too long"
            raise TransferError(f"reading from {self._address} {why}")
        return left_s

    def _hang_up(self) -> None:
        with self._lock:
            if self.connection is not None:
                self.connection.close()
            self.connection = None
