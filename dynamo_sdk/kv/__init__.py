"""KV blocks as pure bookkeeping: their names (hashes) and their places (the pool). No bytes, no I/O."""

from .block_pool import BlockPool, PoolAllocation
from .hashing import (
    BlockHash,
    RoutingHash,
    block_hashes,
    cache_keys,
    cache_root,
    next_cache_key,
    routing_hashes,
    routing_seed,
    sequence_hashes,
)

__all__ = [
    "BlockHash",
    "BlockPool",
    "PoolAllocation",
    "RoutingHash",
    "block_hashes",
    "cache_keys",
    "cache_root",
    "next_cache_key",
    "routing_hashes",
    "routing_seed",
    "sequence_hashes",
]
