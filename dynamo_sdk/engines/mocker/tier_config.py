"""What a deploy file may say of the tiers of a simulated engine, and how fast they are where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ByteSize, Field

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import TierSize, check_tier_sizes
from dynamo_sdk.plugins.config import PluginConfig
from dynamo_sdk.types.kv_events import KVTier
from dynamo_sdk.types.plan import KVTierPlan

from .tier import ENDLESS_BLOCKS, TierModel

_BYTES_PER_GB = 1e9


class TierSpeed(PluginConfig):
    """Reads and writes have ``num_channels`` each, of so many GB (a thousand million bytes) a second each; a
    transfer takes ``latency_ms`` beside its bytes. None: as the kind of the tier has it."""

    latency_ms: float | None = Field(default=None, ge=0)
    read_gb_per_s: float | None = Field(default=None, gt=0)
    write_gb_per_s: float | None = Field(default=None, gt=0)
    num_channels: int | None = Field(default=None, ge=1)


class SimTierConfig(PluginConfig):
    """``kind``, ``name``, ``capacity``, ``min_uses``, ``min_priority`` as in the deploy file's ``kv.tiers``.
    The capacity is of one worker, all its data-parallel ranks together; None = it never ends. ``min_uses``
    None: 0 for RAM, 2 for all others."""

    kind: str
    name: str = ""
    capacity: ByteSize | None = Field(default=None, gt=0)
    eviction: Literal["lru", "lfu", "priority", "leaf-first"] = "lru"
    min_uses: int | None = Field(default=None, ge=0)
    min_priority: int | None = None

    @property
    def label(self) -> str:
        return self.name or self.kind


def planned_tiers(plans: Sequence[KVTierPlan]) -> tuple[SimTierConfig, ...]:
    """A model's tiers as the plan has them, but for what other workers hold: that is not simulated."""
    return tuple(
        SimTierConfig.model_validate(
            {
                "kind": plan.kind,
                "name": plan.name,
                "capacity": plan.capacity_bytes,
                "eviction": plan.args.get("eviction", "lru"),
                "min_uses": plan.min_uses,
                "min_priority": plan.min_priority,
            }
        )
        for plan in plans
        if plan.kind not in NOT_SIMULATED
    )


NOT_SIMULATED = frozenset({"shared"})
"""A worker's tier of this kind has nothing that it wrote itself."""

EVENT_TIERS = {"ram": KVTier.HOST, "disk": KVTier.DISK}
"""What KV events call a kind; all others are remote."""

SPEEDS = {
    # A PCIe 4 x16 link moves 32 GB/s in each direction; four fifths of that arrive.
    "ram": TierSpeed(latency_ms=0.02, read_gb_per_s=25.0, write_gb_per_s=25.0, num_channels=1),
    # One NVMe drive on PCIe 4 x4, in large pieces; writes as they are once its cache is full.
    "disk": TierSpeed(latency_ms=0.1, read_gb_per_s=6.0, write_gb_per_s=2.0, num_channels=1),
    # Object storage in the same building: one request is slow, many at once fill 40 Gbit/s.
    "s3": TierSpeed(latency_ms=30.0, read_gb_per_s=0.6, write_gb_per_s=0.3, num_channels=8),
}


def tier_models(
    tiers: Sequence[SimTierConfig],
    speeds: Mapping[str, TierSpeed],
    *,
    num_device_blocks: int,
    block_bytes: int,
    dp_size: int,
    speedup_ratio: float,
) -> list[TierModel]:
    """Of one rank, whose device has ``num_device_blocks``. ``speeds``: by name or kind of a tier. Raises
    ``ConfigError`` for what cannot work."""
    if not tiers:
        return []
    if not block_bytes:
        raise ConfigError("tiers need blocks with bytes; kv_bytes_per_token is 0")
    labels = [tier.label for tier in tiers]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"tiers need names of their own, not {', '.join(labels)}")
    known = {*labels, *(tier.kind for tier in tiers), *SPEEDS}
    if unknown := speeds.keys() - known:
        raise ConfigError(
            f"tier_speeds names no tier: {', '.join(sorted(unknown))} (tiers: {', '.join(labels)})"
        )
    sizes = [TierSize(tier.label, tier.capacity // dp_size) for tier in tiers if tier.capacity is not None]
    check_tier_sizes(num_device_blocks * block_bytes, sizes, block_bytes)
    rate = _BYTES_PER_GB * speedup_ratio
    models: list[TierModel] = []
    for tier in tiers:
        speed = _speed(tier, speeds)
        assert speed.latency_ms is not None
        assert speed.read_gb_per_s is not None
        assert speed.write_gb_per_s is not None
        models.append(
            TierModel(
                name=tier.label,
                kind=EVENT_TIERS.get(tier.kind, KVTier.REMOTE),
                num_blocks=ENDLESS_BLOCKS
                if tier.capacity is None
                else tier.capacity // dp_size // block_bytes,
                eviction=tier.eviction,
                latency_s=speed.latency_ms / 1e3 / speedup_ratio,
                read_bytes_per_s=speed.read_gb_per_s * rate,
                write_bytes_per_s=speed.write_gb_per_s * rate,
                num_channels=speed.num_channels or 1,
                min_uses=_default_min_uses(tier) if tier.min_uses is None else tier.min_uses,
                min_priority=tier.min_priority,
            )
        )
    return models


def _default_min_uses(tier: SimTierConfig) -> int:
    return 0 if EVENT_TIERS.get(tier.kind) is KVTier.HOST else 2


def _speed(tier: SimTierConfig, speeds: Mapping[str, TierSpeed]) -> TierSpeed:
    given: dict[str, float | int] = {}
    for known in (SPEEDS.get(tier.kind), speeds.get(tier.kind), speeds.get(tier.label)):
        if known is not None:
            given |= known.model_dump(exclude_none=True)
    missing = {"latency_ms", "read_gb_per_s", "write_gb_per_s"} - given.keys()
    if missing:
        raise ConfigError(
            f"how fast is tier {tier.label!r}? tier_speeds.{tier.label} needs {', '.join(sorted(missing))} "
            f"(known: {', '.join(SPEEDS)})"
        )
    return TierSpeed.model_validate(given)
