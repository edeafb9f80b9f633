"""What SGLang is started with, so that it keeps KV in the tiers of the deploy file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamo_sdk.engines.weights import folder_digest
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import EngineSetup, KVTierSetup
from dynamo_sdk.types import KVTier

BACKEND_MODULE, BACKEND_CLASS = "dynamo_sdk_sglang.hicache", "StoreBackend"
GIGABYTE = 1e9


def kv_identity(setup: EngineSetup, written: Mapping[str, object]) -> str:
    """What KV depends on and SGLang's names of pages do not: all weights, adapters' included (those that it
    is started with have names that last), and the settings ``written`` for it. Reads all files."""
    facts = {
        "model": folder_digest(Path(setup.model.path)),
        "loras": {lora.name: folder_digest(Path(lora.path)) for lora in setup.loras},
        "settings": dict(written),
    }
    said = json.dumps(facts, sort_keys=True, default=str).encode()
    return hashlib.blake2b(said, digest_size=16).hexdigest()


def tier_arguments(tiers: Sequence[KVTierSetup], identity: str) -> dict[str, Any]:
    """Fields of ``ServerArgs``. The first tier is SGLang's own host memory, the second one a store of ours,
    whose blocks outlive this SGLang; ``identity``: see ``kv_identity``.

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
            "identity": identity,
            "prefetch_threshold": 1,  # tokens; SGLang makes a page of it, and would look from 256 on
        }
        arguments |= {
            "hicache_storage_backend": "dynamic",
            "hicache_storage_backend_extra_config": json.dumps(backend),
        }
    return arguments
