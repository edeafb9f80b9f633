"""What SGLang is started with, so that it keeps KV in the tiers of the deploy file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.types import KVTier

BACKEND_MODULE, BACKEND_CLASS = "dynamo_sdk_sglang.hicache", "StoreBackend"
GIGABYTE = 1e9


def tier_arguments(tiers: Sequence[KVTierSetup]) -> dict[str, Any]:
    """Fields of ``ServerArgs``. The first tier is SGLang's own host memory, the second one a store of ours.

    One rule says what is written to both: all of it, or what was asked for twice. Raises ``ConfigError``.
    """
    if not tiers:
        return {}
    first, *more = tiers
    if first.tier is not KVTier.HOST or any(tier.tier is KVTier.HOST for tier in more) or len(more) > 1:
        raise ConfigError("SGLang takes one tier in RAM, and at most one more below it", param="kv.tiers")
    if any(tier.plan.min_priority is not None for tier in tiers):
        raise ConfigError("SGLang's tiers do not know priorities", param="kv.tiers")
    arguments: dict[str, Any] = {
        "enable_hierarchical_cache": True,
        "hicache_size": (first.plan.capacity_bytes or 0) / GIGABYTE,
        "hicache_write_policy": "write_through" if first.plan.min_uses < 2 else "write_through_selective",
    }
    for tier in more:
        backend = {
            "backend_name": tier.name,
            "module_path": BACKEND_MODULE,
            "class_name": BACKEND_CLASS,
            "kind": tier.plan.kind,
            "args": tier.plan.args,
            "prefetch_threshold": 1,  # tokens; SGLang makes a page of it, and would look from 256 on
        }
        arguments |= {
            "hicache_storage_backend": "dynamic",
            "hicache_storage_backend_extra_config": json.dumps(backend),
        }
    return arguments
