"""``Tier``: one store below the device, what it was asked and what it did. Its failures end here."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import TypeVar

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStore,
    KVStoreFailure,
    KVStoreFailureKind,
    KVStoreListener,
    KVTierCounts,
    KVTierStatistics,
    RestoredBlock,
)
from dynamo_sdk.kv import CachedBlock, NotPresent, OffloadQueue, TierContents
from dynamo_sdk.stores.failures import FailureLog
from dynamo_sdk.types import KVTier

from .absent import AbsentStore

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Tier(KVStoreListener):
    """``number``: its place among ``contents``. A store that raises, which it must not, is one that has
    nothing and takes nothing: the first time in a minute that is a line in the log."""

    def __init__(
        self,
        number: int,
        name: str,
        kind: KVTier,
        store: KVStore,
        queue: OffloadQueue,
        contents: TierContents,
        on_change: Callable[[], None],
    ) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.store = store
        self.queue = queue
        self.counts = KVTierCounts()
        self._contents = contents
        self._on_change = on_change
        self._failure_log = FailureLog(logger, f"tier {name}")
        store.listen(self)

    # -- the store says

    def stored(self, keys: Sequence[CacheKey]) -> None:
        self._contents.stored(self.number, keys)
        self._on_change()

    def restored(self, blocks: Sequence[RestoredBlock]) -> None:
        self._contents.restored(self.number, blocks)
        self._on_change()

    def removed(self, keys: Sequence[CacheKey]) -> None:
        self._contents.removed(self.number, keys)
        self._on_change()

    def failed(self, failure: KVStoreFailure) -> None:
        self.counts.num_failures += failure.num_blocks

    async def start(self, *, may_lack: bool) -> None:
        """Raises ``ConfigError``; with ``may_lack`` that is a line in the log, and the tier stays empty."""
        try:
            await self.store.start()
        except ConfigError as error:
            if not may_lack:
                raise
            logger.warning("tier %s is left out until the next start: %s", self.name, error)
            await self.store.close()
            self.store = AbsentStore()

    # -- the store is asked

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        """How many leading ``keys`` are probably here."""
        found = await self._guarded(self.store.count_prefix(keys), 0, len(keys))
        return max(0, min(found, len(keys)))

    async def lacking(self, blocks: Sequence[CachedBlock]) -> list[CachedBlock]:
        """Of ``blocks`` those that are not here. Who others write to, or says nothing of itself, must be
        asked."""
        there = await self._guarded(self.store.contains([block.key for block in blocks]), [], 0)
        if not any(there) or len(there) != len(blocks):
            return list(blocks)
        self.queue.num_refused[NotPresent.reason] += sum(there)
        return [block for block, is_there in zip(blocks, there, strict=True) if not is_there]

    async def put_many(self, offers: Sequence[BlockOffer]) -> int:
        """How many were kept."""
        return sum(await self._guarded(self.store.put_many(offers), [], len(offers)))

    async def get_leading(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> int:
        """Fill the buffers; how many of them, from the first on, hold their blocks."""
        found = await self.get(keys, into)
        return found.index(False) if False in found else len(found)

    async def get(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        nothing = [False] * len(keys)
        found = await self._guarded(self.store.get_into(keys, into), nothing, len(keys))
        return found if len(found) == len(keys) else nothing

    async def _guarded(self, call: Awaitable[T], nothing: T, num_blocks: int) -> T:
        try:
            return await call
        except Exception as error:
            failure = KVStoreFailure(
                kind=KVStoreFailureKind.IO, message=f"the store raised {error!r}", num_blocks=num_blocks
            )
            self._failure_log.note(failure, time.monotonic())
            self.failed(failure)
            return nothing

    def statistics(self) -> KVTierStatistics:
        return KVTierStatistics(
            name=self.name,
            tier=self.kind,
            store=self.store.statistics(),
            counts=copy(self.counts),
            num_queued_blocks=len(self.queue),
            num_dropped_blocks=self.queue.num_dropped,
            num_refused_blocks=dict(self.queue.num_refused),
        )
