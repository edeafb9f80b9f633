"""What is written for the connector: ``kv_connector_extra_config`` of vLLM's ``KVTransferConfig``.

``tiers`` is a list of ``KVTierPlan`` as plain data, from the fastest down, such as::

    [{"name": "ram", "kind": "ram", "capacity_bytes": 8589934592, "args": {"capacity_bytes": 8589934592}}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.kv import OnboardingRule
from dynamo_sdk.plugins import Registry
from dynamo_sdk.services.kv_tiers import tier_setups
from dynamo_sdk.types.plan import Json, KVTierPlan

CONNECTOR = "KVTiersConnector"
MODULE = "dynamo_sdk_vllm.tiers.connector"


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``num_shards`` parts of each block is this worker's. ``name``: unlike those of all other
    workers of this vLLM; empty where there is one."""

    name: str = ""
    num_shards: int = 1


class TiersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tiers``: from the fastest down. ``onboarding``: load what was measured to cost less than computing,
    or whatever is there. ``has_statistics``: who started this vLLM finds the tiers' among its statistics.
    ``sharing``: the folder where it says whether others may read them (``sharing.py``). ``num_ranks``: of
    data parallelism; to the ranks of a model without experts vLLM says that each is alone. ``may_lack``: as
    in ``KVTierSetup``."""

    tiers: tuple[KVTierPlan, ...]
    onboarding: OnboardingRule = "measured"
    has_statistics: bool = False
    sharing: str | None = None
    num_ranks: int = 1
    may_lack: bool = False


def read_config(extra: Mapping[str, object]) -> TiersConfig:
    """Raises ``ConfigError``."""
    try:
        config = msgspec.convert(extra, TiersConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"kv_connector_extra_config: {error}") from error
    if not config.tiers:
        raise ConfigError("kv_connector_extra_config.tiers is empty; name at least one, such as kind: ram")
    return config


def shard_of(parallel: Any, num_ranks: int) -> Shard:
    """``parallel``: vLLM's ``ParallelConfig`` in one of its processes."""
    num_ranks = max(num_ranks, parallel.data_parallel_size)
    if parallel.world_size == num_ranks == 1:
        return Shard()
    rank = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
    return Shard(f"rank-{rank}-{parallel.rank}", parallel.world_size * num_ranks)


def setups_of(
    plans: Sequence[KVTierPlan],
    registry: Registry,
    shard: Shard,
    secret: str | None = None,
    *,
    may_lack: bool = False,
) -> tuple[KVTierSetup, ...]:
    """What ``KVTiers`` is built from. Workers of one vLLM share a capacity, and have folders of their own.
    ``secret``: of the deployment."""
    shares = [_share_of(plan, shard) for plan in plans]
    return tier_setups(shares, registry, shard.name, secret, may_lack=may_lack)


def _share_of(plan: KVTierPlan, shard: Shard) -> KVTierPlan:
    if plan.capacity_bytes is None:
        return plan
    capacity_bytes = plan.capacity_bytes // shard.num_shards
    args: dict[str, Json] = {**plan.args, "capacity_bytes": capacity_bytes}
    return msgspec.structs.replace(plan, args=args, capacity_bytes=capacity_bytes)
