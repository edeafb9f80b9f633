"""KV blocks as pure bookkeeping: their names (hashes), their places on one worker (the pool), and which
worker holds them (the index). No bytes, no I/O."""

from .block_pool import BlockPool, PoolAllocation
from .decision_index import DecisionIndex, deepest
from .digest import digest
from .event_cursor import Apply, AskSnapshot, CursorAction, EventCursor, Replace
from .event_log import EventLog
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
from .prefix_index import PrefixIndex, PrefixIndexStatistics
from .prefix_keys import PrefixKeys, prefix_keys

__all__ = [
    "Apply",
    "AskSnapshot",
    "BlockHash",
    "BlockPool",
    "CursorAction",
    "DecisionIndex",
    "EventCursor",
    "EventLog",
    "PoolAllocation",
    "PrefixIndex",
    "PrefixIndexStatistics",
    "PrefixKeys",
    "Replace",
    "RoutingHash",
    "block_hashes",
    "cache_keys",
    "cache_root",
    "deepest",
    "digest",
    "next_cache_key",
    "prefix_keys",
    "routing_hashes",
    "routing_seed",
    "sequence_hashes",
]
