"""From an engine's KV events to digests: 16 bytes a block in the place of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.types.kv_events import (
    BlocksCleared,
    BlocksMoved,
    BlocksRemoved,
    BlocksStored,
    EngineBlockHash,
    KVDigest,
    KVEvent,
    MovedDigest,
    RemovedDigest,
    StoredDigest,
)
from dynamo_sdk.types.tokens import pack_tokens

from .hashing import block_hashes, routing_seed
from .prefix_keys import pack_words

_UINT64_MASK = (1 << 64) - 1
_NAME_BYTES = 8


def digest(event: KVEvent) -> KVDigest:
    """The same event without tokens. Raises ``ValueError`` when tokens and names are not equally many."""
    match event:
        case BlocksStored() if event.token_hashes:
            if len(event.token_hashes) != len(event.block_hashes):
                raise ValueError(f"{len(event.token_hashes)} hashes for {len(event.block_hashes)} blocks")
            return _stored(event, pack_words(event.token_hashes))
        case BlocksStored():
            if len(event.token_ids) != len(event.block_hashes) * event.block_size:
                num_tokens, num_blocks = len(event.token_ids), len(event.block_hashes)
                raise ValueError(f"{num_tokens} tokens for {num_blocks} blocks of {event.block_size}")
            seed = routing_seed(lora=event.lora, cache_salt=event.cache_salt)
            hashes = block_hashes(pack_tokens(event.token_ids), event.block_size, seed=seed)
            return _stored(event, pack_words(hashes))
        case BlocksRemoved():
            return RemovedDigest(names=_pack_names(event.block_hashes), tier=event.tier)
        case BlocksMoved():
            return MovedDigest(names=_pack_names(event.block_hashes), tier=event.tier, to_tier=event.to_tier)
        case BlocksCleared():
            return event


def _stored(event: BlocksStored, hashes: bytes) -> StoredDigest:
    return StoredDigest(
        names=_pack_names(event.block_hashes),
        hashes=hashes,
        parent=None if event.parent_hash is None else block_name(event.parent_hash),
        tier=event.tier,
    )


def block_name(name: EngineBlockHash) -> int:
    """64 bits of an engine's name: the number modulo 2**64 (some are signed), or the first eight bytes."""
    if isinstance(name, int):
        return name & _UINT64_MASK
    return int.from_bytes(name[:_NAME_BYTES], "little")


def _pack_names(names: Sequence[EngineBlockHash]) -> bytes:
    return pack_words([block_name(name) for name in names])
