"""An answer on its way to a reader: pieces of blocks, sent by one thread while the loop reads the next."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.transfer.address import shut
from dynamo_sdk.transfer.spans import MAX_BUFFERS, buffers_after

from .checksum import block_checksum
from .peer_wire import Piece, frame


@dataclass(frozen=True, slots=True)
class OutgoingPiece:
    """``found``: as in ``Piece``; ``blocks``: those found, which lie in ``buffer``."""

    found: bytes
    blocks: Sequence[tuple[CacheKey, memoryview]]
    buffer: memoryview


class PieceSender:
    """``run`` once, on a thread. ``put`` and ``abort`` come from the loop. ``on_sent`` is called on the
    thread with each buffer that is free again. The reader has ``piece_s`` for each piece."""

    def __init__(
        self, connected: socket.socket, piece_s: float, on_sent: Callable[[memoryview], None]
    ) -> None:
        self._connected = connected
        self._piece_s = piece_s
        self._on_sent = on_sent
        self._pieces: SimpleQueue[OutgoingPiece | None] = SimpleQueue()

    def put(self, piece: OutgoingPiece | None) -> None:
        """None: that was the last one."""
        self._pieces.put(piece)

    def abort(self) -> None:
        """Make ``run`` end soon. The connection is of no use then."""
        shut(self._connected)
        self._pieces.put(None)

    def run(self) -> None:
        """Raises ``OSError`` when the reader is gone or stuck."""
        while (piece := self._pieces.get()) is not None:
            checksums = b"".join([block_checksum(key, block) for key, block in piece.blocks])
            head = memoryview(frame(Piece(piece.found, checksums)))
            self._send([head, *[block for _, block in piece.blocks]])
            self._on_sent(piece.buffer)

    def _send(self, pending: list[memoryview]) -> None:
        deadline_s = time.monotonic() + self._piece_s
        while pending:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the reader is too slow")
            self._connected.settimeout(left_s)
            pending = buffers_after(pending, self._connected.sendmsg(pending[:MAX_BUFFERS]))
