"""A worker's tiers, open to the other workers of its model: a server for them to read from, and the secret
with which its own store reads theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import (
    Engine,
    HasKVTiers,
    KVSharingStatistics,
    KVStore,
    ReadsPeers,
    ServedTiers,
)
from dynamo_sdk.metrics import definitions as d
from dynamo_sdk.metrics.kv_tiers import TierMetrics
from dynamo_sdk.stores import PeerServer
from dynamo_sdk.types.plan import KVTierPlan

logger = logging.getLogger(__name__)

SHARED = "shared"
StoreFactory = Callable[[int], KVStore]


def trusting(build: StoreFactory, secret: str | None) -> StoreFactory:
    """``build``, and what it makes knows the secret if it reads from others."""

    def build_trusting(block_bytes: int) -> KVStore:
        store = build(block_bytes)
        if isinstance(store, ReadsPeers):
            store.trust(None if secret is None else secret.encode())
        return store

    return build_trusting


@dataclass(frozen=True, slots=True)
class SharedTiers:
    """What others may read, and ``address``: where they reach it. Close it before the engine. ``server``:
    None where the engine serves them itself."""

    address: str
    statistics: Callable[[], KVSharingStatistics]
    server: PeerServer | None = None

    def observe(self, metrics: TierMetrics) -> None:
        """Set the series of what others read to what is said of it now."""
        statistics = self.statistics()
        metrics.set_total(d.KVBM_SHARED_LOOKUPS, statistics.num_lookups)
        metrics.set_total(d.KVBM_SHARED_BLOCKS, statistics.num_blocks)
        metrics.set_total(d.KVBM_SHARED_REFUSED, statistics.num_refused)

    async def close(self) -> None:
        if self.server is not None:
            await self.server.close()


async def serve_tiers(
    engine: Engine, tiers: Sequence[KVTierPlan], address: str, secret: str | None
) -> SharedTiers | None:
    """Listen at ``address`` for those who read what the engine keeps in ``tiers``; None where it reads from
    nobody itself. Raises ``ConfigError`` when it keeps nothing that could be read."""
    readable = engine.readable_tiers() if isinstance(engine, HasKVTiers) else None
    if readable is None:
        if any(tier.kind == SHARED for tier in tiers):
            logger.warning("this engine reads nothing of other workers: its tier %r has no effect", SHARED)
        return None
    if isinstance(readable, ServedTiers):
        return SharedTiers(readable.address, readable.statistics)
    if not readable.stores:
        raise ConfigError(
            "kv.tiers: workers read each other's host memory and disks, and none of them has any; "
            "put a tier such as ram before shared"
        )
    key = None if secret is None else secret.encode()
    server = PeerServer(readable.stores, readable.block_bytes, secret=key)
    [reached_at] = await server.start([address])
    return SharedTiers(reached_at, server.statistics, server)
