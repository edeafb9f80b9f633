"""A worker's tiers: from the plan to what an engine is started with, and from what it says to metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from dynamo_sdk.interfaces import KVStore, KVTierSetup, KVTiersStatistics, KVTierStatistics
from dynamo_sdk.metrics import definitions as d
from dynamo_sdk.metrics.kv_tiers import DROPPED, GONE, TierMetrics, TierTotals
from dynamo_sdk.plugins import Registry
from dynamo_sdk.types import KVTier
from dynamo_sdk.types.plan import Json, KVTierPlan

from .kv_sharing import trusting


def tier_setups(
    tiers: Sequence[KVTierPlan],
    registry: Registry,
    own_folder: str,
    secret: str | None = None,
    *,
    may_lack: bool = False,
) -> tuple[KVTierSetup, ...]:
    """``own_folder``: what this worker calls its part of a folder that several share, such as
    ``Decode-0``. ``secret``: of the deployment. ``may_lack``: as in ``KVTierSetup``. Raises ``ConfigError``
    and ``PluginError``."""
    return tuple(_setup(tier, registry, own_folder, secret, may_lack) for tier in tiers)


def _setup(
    tier: KVTierPlan, registry: Registry, own_folder: str, secret: str | None, may_lack: bool
) -> KVTierSetup:
    descriptor = registry.kv_stores.require(tier.kind)
    args = dict(tier.args)
    folder_arg = descriptor.folder_arg
    if folder_arg is not None and isinstance(folder := args.get(folder_arg), str):
        args[folder_arg] = str(Path(folder) / own_folder)
    return KVTierSetup(
        name=tier.name,
        tier=descriptor.tier,
        plan=msgspec.structs.replace(tier, args=args),
        build=trusting(partial(_build, registry, tier.kind, args), secret),
        may_lack=may_lack,
    )


def _build(registry: Registry, kind: str, args: dict[str, Json], block_bytes: int) -> KVStore:
    return registry.build_kv_store(kind, {**args, "block_bytes": block_bytes})


def observe_tiers(metrics: TierMetrics, statistics: KVTiersStatistics) -> None:
    """Set the series to what the engine says now."""
    if not statistics.tiers:
        return
    for tier in statistics.tiers:
        metrics.set_tier(tier.name, _totals(tier))
    for decision, total in statistics.num_decisions.items():
        metrics.set_total(d.KVBM_DECISIONS, total, decision)
    host = [tier for tier in statistics.tiers if tier.tier is KVTier.HOST]
    disk = [tier for tier in statistics.tiers if tier.tier is KVTier.DISK]
    metrics.set_total(d.KVBM_MATCHED_TOKENS, statistics.num_matched_tokens)
    metrics.set_total(d.KVBM_OFFLOAD_D2H, sum(tier.counts.num_offloaded_blocks_from_device for tier in host))
    metrics.set_total(d.KVBM_OFFLOAD_H2D, sum(tier.counts.num_offloaded_blocks_from_tiers for tier in disk))
    metrics.set_total(d.KVBM_OFFLOAD_D2D, sum(tier.counts.num_offloaded_blocks_from_device for tier in disk))
    metrics.set_total(d.KVBM_ONBOARD_H2D, sum(tier.counts.num_onboarded_blocks for tier in host))
    metrics.set_total(d.KVBM_ONBOARD_D2D, sum(tier.counts.num_onboarded_blocks for tier in disk))


def _totals(tier: KVTierStatistics) -> TierTotals:
    counts = tier.counts
    return TierTotals(
        num_lookup_blocks=counts.num_lookup_blocks,
        num_hit_blocks=counts.num_hit_blocks,
        num_onboarded_blocks=counts.num_onboarded_blocks,
        onboarded_bytes=counts.onboarded_bytes,
        onboard_s=counts.onboard_s,
        num_offloaded_blocks=counts.num_offloaded_blocks_from_device + counts.num_offloaded_blocks_from_tiers,
        offloaded_bytes=counts.offloaded_bytes,
        offload_s=counts.offload_s,
        num_evicted_blocks=tier.store.num_evicted,
        num_failed_blocks=max(counts.num_failures, tier.store.num_failures),
        num_queued_blocks=tier.num_queued_blocks,
        num_blocks=tier.store.num_blocks,
        used_bytes=tier.store.used_bytes,
        capacity_bytes=tier.store.capacity_bytes,
        num_skipped_blocks={
            **tier.num_refused_blocks,
            DROPPED: tier.num_dropped_blocks,
            GONE: counts.num_missed_blocks,
        },
    )
