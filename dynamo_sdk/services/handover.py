"""Where an engine's blocks, tickets and transfer meet: the worker's side of the ``direct`` connector.

Engines know nothing of tickets, ``transfer/`` nothing of requests; this joins them::

    prefill   engine: HANDOVER, blocks held  ->  issue a ticket  ->  fetched | revoked | expired: release
    decode    reserve blocks  ->  fetch what is not cached  ->  engine continues  (failed: release)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from hashlib import blake2b

import msgspec

from dynamo_sdk.errors import Overloaded, TicketExpired
from dynamo_sdk.interfaces import Engine, ExposesBlocks
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.transfer import BlockFetcher, BlockServer, TransferReport
from dynamo_sdk.types import FinishReason, GenerateChunk, GenerateRequest, LegTiming, Role, TransferSettings
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN

TICKET_TTL_S = 120.0
"""How long a prefill worker holds blocks for a decode worker that is busy; a decode worker that dies gives
them back much sooner, through the request flow."""


class BlockHandover:
    """Runs the legs of an engine that exposes its blocks, with tickets at both ends.

    ``engine`` and ``blocks`` are two faces of one object.
    """

    def __init__(
        self,
        engine: Engine,
        blocks: ExposesBlocks,
        clock: Clock,
        *,
        secret: str | None,
        settings: TransferSettings | None = None,
        ttl_s: float = TICKET_TTL_S,
    ) -> None:
        key = None if secret is None else secret.encode()
        self._engine = engine
        self._blocks = blocks
        self._clock = clock
        self._ttl_s = ttl_s
        self._num_open = 0  # legs, and what they left to be fetched
        self._ended = asyncio.Event()
        self.server = BlockServer(secret=key, settings=settings)
        self.fetcher = BlockFetcher(secret=key, settings=settings)

    async def start(self, address: str) -> None:
        """Listen for fetches at ``address`` (``unix:`` or ``tcp:``)."""
        await self.server.start([address])
        await self.server.register(self._blocks.block_memory)

    async def drain(self) -> None:
        """Return when no leg is left, one that waits for blocks or for its KV included, and nothing that was
        handed over is still to be fetched."""
        while self._num_open:
            self._ended.clear()
            await self._ended.wait()

    def _end(self) -> None:
        self._num_open -= 1
        self._ended.set()

    def release(self, request_id: str) -> None:
        """Nobody will fetch what is held for this leg. Idempotent."""
        self.server.revoke(request_id)

    async def close(self) -> None:
        await self.fetcher.close()
        await self.server.close()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """``Engine.generate``, with a ticket on ``HANDOVER`` and the blocks fetched before decode."""
        report: TransferReport | None = None
        self._num_open += 1
        try:
            if request.role is Role.DECODE and request.kv_transfer is not None:
                report = await self._fetch(request)
            async with aclosing(self._engine.generate(request)) as chunks:
                async for chunk in chunks:
                    if chunk.finish_reason is FinishReason.HANDOVER:
                        chunk = self._with_ticket(request, chunk)
                    elif chunk.finish_reason is not None and report is not None:
                        chunk = _with_report(chunk, report)
                    yield chunk
        finally:
            if report is not None:  # an engine that refuses the request has not taken the blocks over
                self._blocks.release_blocks(request.request_id)
            self._end()

    def _with_ticket(self, request: GenerateRequest, chunk: GenerateChunk) -> GenerateChunk:
        blocks, request_id = self._blocks, request.request_id
        try:
            ticket = self.server.issue(
                request_id,
                blocks.held_blocks(request_id),
                blocks.block_memory,
                ttl_s=self._ttl_s,
                release=partial(self._free, request_id),
                content=kv_content(request.prompt + request.generated, blocks.kv_identity(request)),
            )
            self._num_open += 1
        except BaseException:
            blocks.release_blocks(request_id)
            raise
        return msgspec.structs.replace(chunk, kv_transfer=ticket)

    def _free(self, request_id: str) -> None:
        self._blocks.release_blocks(request_id)
        self._end()

    async def _fetch(self, request: GenerateRequest) -> TransferReport:
        ticket, blocks = request.kv_transfer, self._blocks
        assert ticket is not None
        ttl_s = self._ttl_s if ticket.ttl_s is None else ticket.ttl_s
        end_s = self._clock.now_s() + ttl_s
        if ttl_s <= 0:
            raise TicketExpired("the ticket's time was over when it arrived")
        try:
            async with asyncio.timeout(ttl_s):
                reservation = await blocks.reserve_blocks(request)
        except TimeoutError:
            raise Overloaded(f"no place came free for a hand-over in {ttl_s:.0f} s") from None
        try:
            first, ids = reservation.num_cached_blocks, reservation.block_ids
            known = request.prompt + request.generated[:-BYTES_PER_TOKEN]  # the last one is to be computed
            return await self.fetcher.fetch(
                ticket,
                list(enumerate(ids))[first:],
                blocks.block_memory,
                timeout_s=end_s - self._clock.now_s(),
                content=kv_content(known, blocks.kv_identity(request)),
            )
        except BaseException:
            blocks.release_blocks(request.request_id)
            raise


def kv_content(tokens: bytes, identity: bytes) -> bytes:
    """16 bytes that name the KV of packed ``tokens``; ``identity`` as of ``ExposesBlocks.kv_identity``."""
    lengths = len(identity).to_bytes(8, "little")
    return blake2b(lengths + identity + tokens, digest_size=16, person=b"kv handover").digest()


def _with_report(chunk: GenerateChunk, report: TransferReport) -> GenerateChunk:
    timing = chunk.timing or LegTiming()
    timing = msgspec.structs.replace(
        timing,
        transfer_s=report.duration_s,
        transfer_bytes=report.num_bytes,
        transfer_back_end=report.back_end,
    )
    return msgspec.structs.replace(chunk, timing=timing)
