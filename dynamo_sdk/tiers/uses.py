"""``UseCounter``: which blocks are asked for how often, so that what is goes to the tiers that want to know.

Beside the requests, a few keys at a time; where too many requests come, the oldest are not counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import CachedBlock, CachesBlocks, FrequencySketch, TierContents
from dynamo_sdk.types import GenerateRequest
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN

from .offloading import Offloader

MAX_WAITING_REQUESTS = 256
KEYS_AT_A_TIME = 256


class UseCounter:
    """``offloaders``: of the tiers that take only what is used often, by number."""

    def __init__(
        self,
        sketch: FrequencySketch,
        pool: CachesBlocks,
        contents: TierContents,
        offloaders: Mapping[int, Offloader],
        block_size: int,
        on_change: Callable[[], None],
    ) -> None:
        self._sketch = sketch
        self._pool = pool
        self._contents = contents
        self._offloaders = offloaders
        self._token_bytes = block_size * BYTES_PER_TOKEN
        self._on_change = on_change
        self._waiting: deque[tuple[GenerateRequest, Sequence[CacheKey]]] = deque(maxlen=MAX_WAITING_REQUESTS)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def saw(self, request: GenerateRequest, keys: Sequence[CacheKey]) -> None:
        """A request for the blocks ``keys`` arrived."""
        self._waiting.append((request, keys))
        self._wake.set()
        self._idle.clear()

    async def wait_idle(self) -> None:
        """Everything is counted."""
        await self._idle.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                request, keys = self._waiting.popleft()
                for first in range(0, len(keys), KEYS_AT_A_TIME):
                    self._count(request, keys, range(first, min(first + KEYS_AT_A_TIME, len(keys))))
                    await asyncio.sleep(0)
            self._idle.set()

    def _count(self, request: GenerateRequest, keys: Sequence[CacheKey], places: range) -> None:
        untold: list[CachedBlock] = []
        blocks: list[CachedBlock] = []
        for place in places:
            is_untold = self._contents.is_untold(keys[place])
            if not self._offloaders and not is_untold:
                continue
            block = self._block(request, keys, place)
            if is_untold:
                untold.append(block)
            if self._offloaders:
                self._sketch.increment(block.key)
                blocks.append(block)
        if untold:
            self._contents.learn(untold)
            self._on_change()
        for number, offloader in self._offloaders.items():
            above = [self._contents.keys(upper) for upper in range(number)]
            offloader.offer([block for block in blocks if self._is_there(block.key, above)])

    def _is_there(self, key: CacheKey, tiers: Sequence[Container[CacheKey]]) -> bool:
        return self._pool.place_of(key) is not None or any(key in tier for tier in tiers)

    def _block(self, request: GenerateRequest, keys: Sequence[CacheKey], place: int) -> CachedBlock:
        first, end = place * self._token_bytes, (place + 1) * self._token_bytes
        tokens = request.prompt[first:end]
        if len(tokens) < self._token_bytes:
            tokens = (request.prompt + request.generated)[first:end]
        parent = keys[place - 1] if place else None
        return CachedBlock(keys[place], parent, tokens, request.lora, request.cache_salt, -request.priority)
