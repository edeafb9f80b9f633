"""``Offloader``: copies what waits for one tier into it, beside the engine's steps.

::

    device block ──thread──> staging ──> still the same block? ──> put_many
    tier above ──get_into──> staging ─────────────────────────────────┘

No reference is taken on a device block: it may be evicted and overwritten while it is copied. So the pool is
asked afterwards whether the block was the same all the while; a copy of anything else is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from dynamo_sdk.interfaces import BlockMemory, BlockOffer
from dynamo_sdk.kv import (
    CachedBlock,
    CachedPlace,
    CachesBlocks,
    TierContents,
    block_hashes,
    routing_seed,
)
from dynamo_sdk.transfer.threads import run_to_end

from .staging import Staging
from .tier import Tier

logger = logging.getLogger(__name__)

COALESCE_S = 0.005
"""Blocks become full a few per step; a batch waits so long for more."""


class Offloader:
    """``above``: the tiers that may have a block which the device no longer has."""

    def __init__(
        self,
        tier: Tier,
        above: Sequence[Tier],
        pool: CachesBlocks,
        memory: BlockMemory,
        contents: TierContents,
        staging: Staging,
        threads: Executor,
    ) -> None:
        self._tier = tier
        self._above = tuple(above)
        self._pool = pool
        self._memory = memory
        self._contents = contents
        self._staging = staging
        self._threads = threads
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def offer(self, blocks: Sequence[CachedBlock]) -> None:
        if self._tier.queue.offer(blocks):
            self._wake.set()
            self._idle.clear()

    async def wait_idle(self) -> None:
        """Nothing waits, nothing is being copied."""
        await self._idle.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            if len(self._tier.queue) < self._staging.batch_blocks:
                await asyncio.sleep(COALESCE_S)
            self._wake.clear()
            while blocks := self._tier.queue.take(self._staging.batch_blocks):
                try:
                    await self._bring_down(blocks)
                except Exception:  # a bug costs these blocks a copy
                    logger.exception("%d blocks could not be offloaded", len(blocks))
                finally:
                    self._tier.queue.done(blocks)
            self._idle.set()

    async def _bring_down(self, blocks: Sequence[CachedBlock]) -> None:
        counts = self._tier.counts
        begin_s = time.perf_counter()
        blocks = await self._tier.lacking(blocks)
        async with self._staging.borrow() as buffer:
            places = [place for block in blocks if (place := self._pool.place_of(block.key)) is not None]
            on_device = {place.content.key for place in places}
            ordered = [block for block in blocks if block.key in on_device]
            ordered += [block for block in blocks if block.key not in on_device]
            # Each block keeps its memory to the end: two in one would be one's bytes under the other's key.
            memory_of = dict(zip(ordered, self._staging.blocks(buffer, len(ordered)), strict=True))
            copied = set(await self._copy_from_device(ordered, places, buffer))
            num_from_device = len(copied)
            copied |= await self._copy_from_tiers([b for b in ordered if b not in copied], memory_of)
            counts.num_missed_blocks += len(blocks) - len(copied)
            offered = [block for block in blocks if block in copied]  # parents first, as they came
            if not offered:
                return
            self._contents.expect(self._tier.number, offered)
            try:
                num_kept = await self._tier.put_many(
                    [
                        BlockOffer(
                            block.key,
                            memory_of[block],
                            block.parent,
                            block.priority,
                            self._token_hash(block),
                            self._contents.namespace,
                        )
                        for block in offered
                    ]
                )
            finally:
                self._contents.expect_no_more(self._tier.number, offered)
        counts.num_offloaded_blocks_from_device += min(num_kept, num_from_device)
        counts.num_offloaded_blocks_from_tiers += max(0, num_kept - num_from_device)
        counts.offloaded_bytes += num_kept * self._staging.block_bytes
        counts.offload_s += time.perf_counter() - begin_s

    def _token_hash(self, block: CachedBlock) -> int:
        """0 for an adapter's: after a restart its name may stand for other weights, or for none."""
        if block.lora is not None:
            return 0
        seed = routing_seed(cache_salt=block.cache_salt)
        hashes = block_hashes(block.tokens, self._memory.layout.block_size, seed=seed)
        return hashes[0] if hashes else 0

    async def _copy_from_device(
        self, blocks: Sequence[CachedBlock], places: Sequence[CachedPlace], buffer: memoryview
    ) -> list[CachedBlock]:
        """The first ``blocks``, which lie at ``places``, go to the start of ``buffer``; those that lay there
        unchanged until they were copied."""
        if not places:
            return []
        block_ids = [place.block_id for place in places]
        into = buffer[: len(places) * self._staging.block_bytes]
        await run_to_end(self._threads, partial(self._memory.read, block_ids, into), lambda: None)
        return [block for block, place in zip(blocks, places, strict=False) if self._pool.is_unchanged(place)]

    async def _copy_from_tiers(
        self, blocks: Sequence[CachedBlock], memory_of: Mapping[CachedBlock, memoryview]
    ) -> set[CachedBlock]:
        copied: set[CachedBlock] = set()
        for tier in self._above:
            there = self._contents.keys(tier.number)
            wanted = [block for block in blocks if block not in copied and block.key in there]
            if wanted:
                found = await tier.get(
                    [block.key for block in wanted], [memory_of[block] for block in wanted]
                )
                copied.update(block for block, is_there in zip(wanted, found, strict=True) if is_there)
        return copied
