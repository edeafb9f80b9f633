"""Engines with tiers below the device, and stores that misbehave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.interfaces import CacheKey, EngineSetup, KVStore, KVStoreStatistics, KVTierSetup
from dynamo_sdk.stores import DiskStore, DiskStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.tiers import KVTiers
from dynamo_sdk.types import KVTier, ModelSpec
from dynamo_sdk.types.plan import KVTierPlan

BLOCK_SIZE = 4
MANY_BYTES = 4 << 20
"""More than the device of these tests has."""


class TieredEngine(TorchEngine):
    """With its insides."""

    @property
    def tiers(self) -> KVTiers:
        assert self._started is not None
        link = self._started.core.tiers
        assert link is not None
        return link.tiers

    def forget_device(self) -> None:
        """Nothing is in the prefix cache of the device any more."""
        assert self._started is not None
        self._started.core.scheduler.reset_prefix_cache()


def tier(
    name: str,
    build: Callable[[int], KVStore],
    *,
    kind: KVTier = KVTier.HOST,
    capacity_bytes: int | None = MANY_BYTES,
    **plan: Any,
) -> KVTierSetup:
    return KVTierSetup(
        name=name,
        tier=kind,
        plan=KVTierPlan(name=name, kind=name, capacity_bytes=capacity_bytes, **plan),
        build=build,
    )


def ram(capacity_bytes: int = MANY_BYTES, **plan: Any) -> KVTierSetup:
    return tier(
        "ram",
        lambda size: RamStore(RamStoreConfig(block_bytes=size, capacity_bytes=capacity_bytes)),
        capacity_bytes=capacity_bytes,
        **plan,
    )


def disk(path: Path, **plan: Any) -> KVTierSetup:
    return tier(
        "disk",
        lambda size: DiskStore(DiskStoreConfig(block_bytes=size, capacity_bytes=MANY_BYTES, path=path)),
        kind=KVTier.DISK,
        **plan,
    )


class DictStore(KVStore):
    """A store of one's own, told nothing about listeners; what a test wants to go wrong is overridden."""

    def __init__(self) -> None:
        self.blocks: dict[CacheKey, bytes] = {}

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        self.blocks[key] = bytes(block)
        return True

    async def get(self, key: CacheKey) -> bytes | None:
        return self.blocks.get(key)

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return [key in self.blocks for key in keys]

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        for key in keys:
            self.blocks.pop(key, None)

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(num_blocks=len(self.blocks), used_bytes=sum(map(len, self.blocks.values())))


@asynccontextmanager
async def tiered_engine(
    folder: Path, *tiers: KVTierSetup, **settings: Any
) -> AsyncGenerator[TieredEngine, None]:
    defaults = {
        "device": "cpu",
        "block_size": BLOCK_SIZE,
        "num_blocks": 60,
        "max_num_seqs": 16,
        "num_threads": 1,
        "kv_onboarding": "always",
    }
    setup = EngineSetup(model=ModelSpec(name="tiny", path=str(folder)), role="aggregated", kv_tiers=tiers)
    engine = TieredEngine(setup, TorchConfig(**(defaults | settings)))
    try:
        await engine.start()
        yield engine
        engine.check_integrity()
    finally:
        await engine.close()
