"""An answer on its way to a reader: pieces of blocks, sent by one thread while the loop reads the next."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from dynamo_sdk.errors import ConnectionLost, ProtocolError
from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.transfer.address import shut
from dynamo_sdk.transfer.spans import MAX_BUFFERS, buffers_after
from dynamo_sdk.transfer.ticket import RegionTicket

from .checksum import block_checksum
from .peer_wire import TAKEN, Piece, frame

MAX_UNTAKEN = 2
"""Pieces that a reader copies out of our memory, or knows of: one, and one that it finds when it is done."""


@dataclass(frozen=True, slots=True)
class PieceBuffer:
    """Room for one piece, at ``offset`` of the server's memory."""

    memory: memoryview
    offset: int


@dataclass(frozen=True, slots=True)
class OutgoingPiece:
    """``found``: as in ``Piece``; ``blocks``: those found, which lie in ``buffer``."""

    found: bytes
    blocks: Sequence[tuple[CacheKey, memoryview]]
    buffer: PieceBuffer


class PieceSender:
    """``run`` once, on a thread. ``put`` and ``abort`` come from the loop. ``on_sent`` is called on the
    thread with each buffer that is free again. The reader has ``piece_s`` for each piece. ``region``: of all
    buffers, for a reader that maps them."""

    def __init__(
        self,
        connected: socket.socket,
        piece_s: float,
        on_sent: Callable[[PieceBuffer], None],
        region: RegionTicket | None,
    ) -> None:
        self._connected = connected
        self._piece_s = piece_s
        self._on_sent = on_sent
        self._region = region
        self._pieces: SimpleQueue[OutgoingPiece | None] = SimpleQueue()

    def put(self, piece: OutgoingPiece | None) -> None:
        """None: that was the last one."""
        self._pieces.put(piece)

    def abort(self) -> None:
        """Make ``run`` end soon. The connection is of no use then."""
        shut(self._connected)
        self._pieces.put(None)

    def run(self) -> None:
        """Raises ``OSError``, ``ConnectionLost`` and ``ProtocolError`` when the reader is gone, stuck or
        wrong."""
        untaken: deque[PieceBuffer] = deque()
        while (piece := self._pieces.get()) is not None:
            checksums = b"".join([block_checksum(key, block) for key, block in piece.blocks])
            if self._region is None:
                self._send([_head(Piece(piece.found, checksums)), *[block for _, block in piece.blocks]])
                self._on_sent(piece.buffer)
                continue
            self._send([_head(Piece(piece.found, checksums, self._region, piece.buffer.offset))])
            untaken.append(piece.buffer)
            if len(untaken) == MAX_UNTAKEN:
                self._wait_taken()
                self._on_sent(untaken.popleft())
        for buffer in untaken:
            self._wait_taken()
            self._on_sent(buffer)

    def _send(self, pending: list[memoryview]) -> None:
        deadline_s = time.monotonic() + self._piece_s
        while pending:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the reader is too slow")
            self._connected.settimeout(left_s)
            pending = buffers_after(pending, self._connected.sendmsg(pending[:MAX_BUFFERS]))

    def _wait_taken(self) -> None:
        self._connected.settimeout(self._piece_s)
        answer = self._connected.recv(len(TAKEN))
        if not answer:
            raise ConnectionLost("the reader closed the connection")
        if answer != TAKEN:
            raise ProtocolError("a reader said something else than that it has taken a piece")


def _head(piece: Piece) -> memoryview:
    return memoryview(frame(piece))
