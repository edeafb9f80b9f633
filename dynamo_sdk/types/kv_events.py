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
    """Consecutive full blocks. ``token_ids`` holds ``len(block_hashes) * block_size`` ids; none where the
    listener asked for none, because it goes by ``block_hashes``, or where nobody knows them any more: then
    ``token_hashes`` has the ``BlockHash`` of each block."""

    block_hashes: tuple[EngineBlockHash, ...]
    parent_hash: EngineBlockHash | None
    token_ids: tuple[int, ...]
    block_size: int
    tier: KVTier = KVTier.DEVICE
    lora: str | None = None
    cache_salt: str | None = None
    token_hashes: tuple[int, ...] = ()


class BlocksRemoved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="removed"):
    block_hashes: tuple[EngineBlockHash, ...]
    tier: KVTier = KVTier.DEVICE


class BlocksMoved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="moved"):
    """Blocks that were in ``tier`` are in ``to_tier`` now, and no longer where they were."""

    block_hashes: tuple[EngineBlockHash, ...]
    tier: KVTier
    to_tier: KVTier


class BlocksCleared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="cleared"):
    """The whole prefix cache of this rank is gone."""


KVEvent = BlocksStored | BlocksRemoved | BlocksMoved | BlocksCleared


class StoredDigest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="stored"):
    """``BlocksStored`` without its tokens: what travels, and what indexes read.

    ``names``: 64 bits of the engine's own name per block; ``hashes``: the ``BlockHash`` per block; both
    packed as little-endian words. ``parent``: the name of the block before, None at the start of a sequence.
    """

    names: bytes
    hashes: bytes
    parent: int | None = None
    tier: KVTier = KVTier.DEVICE


class RemovedDigest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="removed"):
    """``names`` as in ``StoredDigest``."""

    names: bytes
    tier: KVTier = KVTier.DEVICE


class MovedDigest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="moved"):
    """``names`` as in ``StoredDigest``."""

    names: bytes
    tier: KVTier
    to_tier: KVTier


KVDigest = StoredDigest | RemovedDigest | MovedDigest | BlocksCleared


class KVEventBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events of one engine step. ``sequence`` counts batches from 0 without a gap per (worker, dp_rank)."""

    sequence: int
    dp_rank: int
    events: tuple[KVEvent, ...]


class KVDigestBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A ``KVEventBatch`` whose events are digests. ``is_snapshot``: they build the state after batch
    ``sequence`` (-1: before the first one) from nothing, together with the snapshot's other parts. Those
    come in order, ``part`` from 0."""

    sequence: int
    dp_rank: int
    digests: tuple[KVDigest, ...]
    is_snapshot: bool = False
    part: int = 0
    num_parts: int = 1
