"""``PeerServer``: lets other workers read this worker's tiers.

Blocks are read out of the stores into a buffer, and leave from there::

    Ask ──> get_into of each store in turn ──> buffer ──> checksums ──> socket
             (holds the slots, for microseconds)   (as slow as    └──> mapped by a reader of this host
                                                    the reader)

So no slot waits for the network, and there is no lease that could run out: a block that is evicted before it
is read is not found, one that is evicted afterwards is in the buffer. While a piece leaves, the next one
is read. Readers are bounded: so many at once, a few that wait, and the others are told to compute.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dynamo_sdk.errors import Overloaded, TransferError
from dynamo_sdk.interfaces import CacheKey, KVSharingStatistics, KVStore
from dynamo_sdk.transfer import wire
from dynamo_sdk.transfer.acceptor import Acceptor, receive_frame, send_frame
from dynamo_sdk.transfer.host import host_identity
from dynamo_sdk.transfer.host_pages import SharedMemory
from dynamo_sdk.transfer.region import describe_region
from dynamo_sdk.transfer.threads import run_to_end

from .peer_sender import OutgoingPiece, PieceBuffer, PieceSender
from .peer_wire import Ask, blocks_per_piece, decode_ask, frame

logger = logging.getLogger(__name__)

IDLE_S = 300.0
"""A connection that asks nothing for so long is closed."""

NUM_BUFFERS = 3
"""Of each ask: one that is filled, one that leaves, one that waits for either."""


class PeerServerStatistics(KVSharingStatistics, frozen=True, kw_only=True):
    """``num_connections`` are open now."""

    num_connections: int
    num_asks: int
    num_bytes: int


class PeerServer:
    """One per worker; all methods are called on one event loop. ``stores``: from the fastest down; they are
    started and closed by their owner, and stay open until ``close`` has returned.

    Each of ``max_concurrent`` asks has a few buffers of a piece. A reader that does not take a piece within
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
        self._spare: list[_Outbox] = []  # of those who are served no more
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
        while self._spare:
            self._spare.pop().close()

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
        loop = asyncio.get_running_loop()
        piece_bytes = self._piece_blocks * self._block_bytes
        outbox = self._spare.pop() if self._spare else await asyncio.to_thread(_Outbox, piece_bytes)
        free: asyncio.Queue[PieceBuffer | None] = asyncio.Queue()
        for buffer in outbox.buffers:
            free.put_nowait(buffer)

        def on_sent(buffer: PieceBuffer) -> None:
            loop.call_soon_threadsafe(free.put_nowait, buffer)

        may_map = ask.host is not None and host_identity().can_share_memory(ask.host)
        sender = PieceSender(connected, self._piece_s, on_sent, outbox.region if may_map else None)
        sending = loop.create_task(run_to_end(self._threads, sender.run, sender.abort))
        sending.add_done_callback(lambda _: free.put_nowait(None))
        try:
            for start in range(0, len(ask.keys), self._piece_blocks):
                free_buffer = await free.get()
                if free_buffer is None:
                    break  # the reader is gone
                keys = [CacheKey(key) for key in ask.keys[start : start + self._piece_blocks]]
                sender.put(await self._read(keys, free_buffer))
            sender.put(None)
            await sending
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
            self._spare.append(outbox)
            connected.setblocking(False)

    async def _read(self, keys: Sequence[CacheKey], buffer: PieceBuffer) -> OutgoingPiece:
        size = self._block_bytes
        into = [buffer.memory[i * size : (i + 1) * size] for i in range(len(keys))]
        found = [False] * len(keys)
        for store in self._stores:
            lacking = [position for position, is_found in enumerate(found) if not is_found]
            if not lacking:
                break
            answers = await store.get_into([keys[i] for i in lacking], [into[i] for i in lacking])
            for position, is_found in zip(lacking, answers, strict=True):
                found[position] = is_found
        self._num_lookups += len(keys)
        self._num_blocks += sum(found)
        blocks = [(k, b) for k, b, is_found in zip(keys, into, found, strict=True) if is_found]
        return OutgoingPiece(bytes(found), blocks, buffer)


class _Outbox:
    """The buffers of one ask, in memory that its reader may map."""

    def __init__(self, piece_bytes: int) -> None:
        self._shared = SharedMemory("kv-peer-outbox", NUM_BUFFERS * piece_bytes)
        region, memory = self._shared.region, self._shared.memory
        assert region is not None, "just opened"
        self.region = describe_region(region)
        self.buffers = [
            PieceBuffer(memory[offset : offset + piece_bytes], offset)
            for offset in range(0, len(memory), piece_bytes)
        ]

    def close(self) -> None:
        """Readers that have it mapped keep it."""
        self._shared.close()
