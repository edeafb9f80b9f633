"""What simulated tiers hold and did, in the terms of live ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from typing import TypeVar

import msgspec

from dynamo_sdk.interfaces import KVStoreStatistics, KVTiersStatistics, KVTierStatistics
from dynamo_sdk.kv import OnboardingReason

from .tier import ENDLESS_BLOCKS, SimTier
from .tiers import SimTiers

S = TypeVar("S", bound=msgspec.Struct)

DECISIONS = {
    OnboardingReason.LOAD: "load",
    OnboardingReason.RECOMPUTE: "recompute",
    OnboardingReason.UNMEASURED: "unmeasured",
}


def tiers_statistics(tiers: SimTiers) -> KVTiersStatistics:
    """Of one rank."""
    return KVTiersStatistics(
        tiers=tuple([_tier_statistics(tier) for tier in tiers.tiers]),
        num_matched_tokens=tiers.num_matched_blocks * tiers.block_size,
        num_decisions={name: tiers.decisions[reason] for reason, name in DECISIONS.items()},
    )


def _tier_statistics(tier: SimTier) -> KVTierStatistics:
    counts, queue, block_bytes = copy(tier.counts), tier.queue, tier.block_bytes
    is_endless = tier.model.num_blocks == ENDLESS_BLOCKS
    num_kept = counts.num_offloaded_blocks_from_device + counts.num_offloaded_blocks_from_tiers
    return KVTierStatistics(
        name=tier.model.name,
        tier=tier.model.kind,
        store=KVStoreStatistics(
            num_blocks=tier.num_blocks,
            used_bytes=tier.num_blocks * block_bytes,
            capacity_bytes=None if is_endless else tier.model.num_blocks * block_bytes,
            num_lookups=tier.num_read_blocks,
            num_hits=tier.num_read_blocks,
            num_offers=num_kept,
            num_kept=num_kept,
            num_evicted=tier.num_evicted,
            read_bytes=tier.num_read_blocks * block_bytes,
            written_bytes=counts.offloaded_bytes,
            num_pending=tier.num_writing,
        ),
        counts=counts,
        num_queued_blocks=len(queue),
        num_dropped_blocks=queue.num_dropped,
        num_refused_blocks=dict(queue.num_refused),
    )


def together(several: Sequence[KVTiersStatistics]) -> KVTiersStatistics:
    """Of several ranks or workers: their sums, tier by tier in the order of the first."""
    tiers: dict[str, KVTierStatistics] = {}
    for tier in [tier for one in several for tier in one.tiers]:
        known = tiers.get(tier.name)
        tiers[tier.name] = tier if known is None else _sum(known, tier)
    decisions: Counter[str] = Counter()
    for one in several:
        decisions.update(one.num_decisions)
    return KVTiersStatistics(
        tiers=tuple(tiers.values()),
        num_matched_tokens=sum(one.num_matched_tokens for one in several),
        num_decisions=dict(decisions),
    )


def _sum(one: KVTierStatistics, other: KVTierStatistics) -> KVTierStatistics:
    refused = Counter(one.num_refused_blocks) + Counter(other.num_refused_blocks)
    return msgspec.structs.replace(
        one,
        store=_add(one.store, other.store),
        counts=_add(one.counts, other.counts),
        num_queued_blocks=one.num_queued_blocks + other.num_queued_blocks,
        num_dropped_blocks=one.num_dropped_blocks + other.num_dropped_blocks,
        num_refused_blocks=dict(refused),
    )


def _add(one: S, other: S) -> S:
    """The numbers of both; None stays None."""
    sums = {
        name: None if getattr(one, name) is None else getattr(one, name) + getattr(other, name)
        for name in one.__struct_fields__
    }
    return msgspec.structs.replace(one, **sums)
