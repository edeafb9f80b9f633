"""What engines say about their KV blocks; numbered, so that a gap can be seen."""

from __future__ import annotations

from enum import StrEnum

import msgspec

EngineBlockHash = int | bytes
"""An engine's own name for a block; opaque. Routers recompute their keys from ``token_ids``."""


class KVTier(StrEnum):
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    REMOTE = "remote"


class BlocksStored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="stored"):
    """Consecutive full blocks. ``token_ids`` holds ``len(block_hashes) * block_size`` ids."""

    block_hashes: tuple[EngineBlockHash, ...]
    parent_hash: EngineBlockHash | None
    token_ids: tuple[int, ...]
    block_size: int
    tier: KVTier = KVTier.DEVICE
    lora: str | None = None
    cache_salt: str | None = None


class BlocksRemoved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="removed"):
    block_hashes: tuple[EngineBlockHash, ...]
    tier: KVTier = KVTier.DEVICE


class BlocksCleared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="cleared"):
    """The whole prefix cache of this rank is gone."""


KVEvent = BlocksStored | BlocksRemoved | BlocksCleared


class KVEventBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events of one engine step. ``sequence`` counts batches from 0 without a gap per (worker, dp_rank)."""

    sequence: int
    dp_rank: int
    events: tuple[KVEvent, ...]
