"""``PeerServer``: lets other workers read this worker's tiers.

Blocks are read out of the stores into a buffer, and leave from there::

    Ask ──> get_into of each store in turn ──> buffer ──> checksums, socket
             (holds the slots, for microseconds)    (as slow as the reader; holds a buffer)

So no slot waits for the network, and there is no lease that could run out: a block that is evicted before it
is read is not found, one that is evicted afterwards is in the buffer. While a piece leaves, the next one
is read. Readers are bounded: so many at once, a few that wait, and the others are told to compute.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from dynamo_sdk.errors import Overloaded, TransferError
from dynamo_sdk.interfaces import CacheKey, KVStore
from dynamo_sdk.transfer import wire
from dynamo_sdk.transfer.acceptor import Acceptor, receive_frame, send_frame
from dynamo_sdk.transfer.address import shut
from dynamo_sdk.transfer.spans import blocks_per_piece
from dynamo_sdk.transfer.threads import run_to_end

from .arena import page_aligned
from .checksum import block_checksum
from .peer_wire import Ask, Piece, decode_ask, frame

logger = logging.getLogger(__name__)

IDLE_S = 300.0
"""A connection that asks nothing for so long is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerServerStatistics:
    """``num_refused``: asks that came while too many others were served."""

    num_connections: int
    num_asks: int
    num_refused: int
    num_lookups: int
    num_blocks: int
    num_bytes: int


class PeerServer:
    """One per worker; all methods are called on one event loop. ``stores``: from the fastest down; they are
    started and closed by their owner, and stay open until ``close`` has returned.

    Each of ``max_concurrent`` asks has two buffers of a piece. A reader that does not take a piece within
    ``piece_s`` is left.
    """

    def __init__(
        self,
        stores: Sequence[KVStore],
        block_bytes: int,
        *,
        secret: bytes | None = None,
        max_concurrent: int = 4,
        max_waiting: int = 16,
        max_connections: int = 256,
        handshake_s: float = 5.0,
        piece_s: float = 10.0,
    ) -> None:
        self._stores = tuple(stores)
        self._block_bytes = block_bytes
        self._piece_s = piece_s
        self._acceptor = Acceptor(
            self._serve,
            peer="reader of KV tiers",
            secret=secret,
            handshake_s=handshake_s,
            max_connections=max_connections,
        )
        self._piece_blocks = blocks_per_piece(block_bytes)
        self._places = asyncio.Semaphore(max_concurrent)
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._buffers: list[memoryview] = []  # of those who are served no more
        self._threads = ThreadPoolExecutor(max_concurrent, thread_name_prefix="kv-peer-send")
        self._num_asks = self._num_refused = self._num_lookups = self._num_blocks = 0

    async def start(self, addresses: Sequence[str], *, advertise_host: str | None = None) -> tuple[str, ...]:
        """As ``Acceptor.start``."""
        return await self._acceptor.start(addresses, advertise_host=advertise_host)

    def statistics(self) -> PeerServerStatistics:
        return PeerServerStatistics(
            num_connections=self._acceptor.num_connections,
            num_asks=self._num_asks,
            num_refused=self._num_refused,
            num_lookups=self._num_lookups,
            num_blocks=self._num_blocks,
            num_bytes=self._num_blocks * self._block_bytes,
        )

    async def close(self) -> None:
        """End every connection and wait for its threads. Idempotent."""
        await self._acceptor.close()
        self._threads.shutdown(wait=False)  # its threads are idle: every connection has ended

    async def _serve(self, connected: socket.socket) -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                ask = decode_ask(await receive_frame(connected))
            self._num_asks += 1
            if ask.block_bytes != self._block_bytes:
                message = f"blocks are {self._block_bytes} bytes here, not {ask.block_bytes}"
                await send_frame(connected, frame(wire.Refused(TransferError.code, message)))
            elif self._num_waiting >= self._max_waiting:
                self._num_refused += 1
                message = f"{self._num_waiting} others are waiting"
                await send_frame(connected, frame(wire.Refused(Overloaded.code, message)))
            else:
                self._num_waiting += 1
                try:
                    await self._places.acquire()
                finally:
                    self._num_waiting -= 1
                try:
                    await self._answer(connected, ask)
                finally:
                    self._places.release()

    async def _answer(self, connected: socket.socket, ask: Ask) -> None:
        buffers = [self._take_buffer(), self._take_buffer()]
        sending: asyncio.Task[None] | None = None
        try:
            for number, start in enumerate(range(0, len(ask.keys), self._piece_blocks)):
                keys = [CacheKey(key) for key in ask.keys[start : start + self._piece_blocks]]
                blocks = self._blocks(buffers[number % 2], len(keys))
                found = await self._read(keys, blocks)
                if sending is not None:
                    await sending
                piece = [(k, b) for k, b, is_found in zip(keys, blocks, found, strict=True) if is_found]
                sending = asyncio.create_task(self._send(connected, bytes(found), piece))
            if sending is not None:
                await sending
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
            self._buffers += buffers
            connected.setblocking(False)

    async def _read(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        self._num_lookups += len(keys)
        found = [False] * len(keys)
        for store in self._stores:
            lacking = [position for position, is_found in enumerate(found) if not is_found]
            if not lacking:
                break
            answers = await store.get_into([keys[i] for i in lacking], [into[i] for i in lacking])
            for position, is_found in zip(lacking, answers, strict=True):
                found[position] = is_found
        self._num_blocks += sum(found)
        return found

    async def _send(
        self, connected: socket.socket, found: bytes, piece: Sequence[tuple[CacheKey, memoryview]]
    ) -> None:
        await run_to_end(
            self._threads,
            partial(_send_piece, connected, found, piece, time.monotonic() + self._piece_s),
            partial(shut, connected),
        )

    def _take_buffer(self) -> memoryview:
        if self._buffers:
            return self._buffers.pop()
        return page_aligned(self._piece_blocks * self._block_bytes)

    def _blocks(self, buffer: memoryview, num_blocks: int) -> list[memoryview]:
        size = self._block_bytes
        return [buffer[i * size : (i + 1) * size] for i in range(num_blocks)]


def _send_piece(
    connected: socket.socket, found: bytes, piece: Sequence[tuple[CacheKey, memoryview]], deadline_s: float
) -> None:
    """Raises ``OSError`` when the reader is gone or stuck."""
    checksums = b"".join([block_checksum(key, block) for key, block in piece])
    parts: list[bytes | memoryview] = [frame(Piece(found, checksums)), *[block for _, block in piece]]
    for part in parts:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the reader is too slow")
        connected.settimeout(left_s)
        connected.sendall(part)
