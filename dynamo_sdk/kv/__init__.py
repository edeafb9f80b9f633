"""KV blocks as pure bookkeeping: their names (hashes), their places on one worker (the pool), which
worker holds them (the index), and what a tier keeps of them and drops. No bytes, no I/O."""

from .block_pool import BlockPool, PoolAllocation
from .cached_block import CachedBlock, CachedPlace, CachesBlocks
from .decision_index import DecisionIndex, deepest
from .digest import digest
from .event_cursor import Apply, AskSnapshot, CursorAction, EventCursor, Replace
from .event_log import EventLog
from .eviction import ByPriority, EvictionPolicy, LeafFirst, Lfu, Lru, eviction_policy
from .frequency_sketch import FrequencySketch
from .hashing import (
    BlockHash,
    RoutingHash,
    block_hashes,
    cache_keys,
    cache_root,
    layout_namespace,
    next_cache_key,
    routing_hashes,
    routing_seed,
    sequence_hashes,
)
from .measured_time import MeasuredTime, MeasuredTimeBySize
from .offloading import Important, NotPresent, OffloadFilter, OffloadQueue, SeenOften
from .onboarding import (
    NOBODY,
    EagerPolicy,
    OnboardingDecision,
    OnboardingPolicy,
    OnboardingReason,
    OnboardingRule,
    Others,
    TierRun,
    onboarding_policy,
)
from .prefix_index import PrefixIndex, PrefixIndexStatistics
from .prefix_keys import PrefixKeys, prefix_keys
from .store_index import SlotReservation, StoreIndex
from .tier_contents import TierContents
from .tier_sizes import TierSize, check_tier_sizes

__all__ = [
    "NOBODY",
    "Apply",
    "AskSnapshot",
    "BlockHash",
    "BlockPool",
    "ByPriority",
    "CachedBlock",
    "CachedPlace",
    "CachesBlocks",
    "CursorAction",
    "DecisionIndex",
    "EagerPolicy",
    "EventCursor",
    "EventLog",
    "EvictionPolicy",
    "FrequencySketch",
    "Important",
    "LeafFirst",
    "Lfu",
    "Lru",
    "MeasuredTime",
    "MeasuredTimeBySize",
    "NotPresent",
    "OffloadFilter",
    "OffloadQueue",
    "OnboardingDecision",
    "OnboardingPolicy",
    "OnboardingReason",
    "OnboardingRule",
    "Others",
    "PoolAllocation",
    "PrefixIndex",
    "PrefixIndexStatistics",
    "PrefixKeys",
    "Replace",
    "RoutingHash",
    "SeenOften",
    "SlotReservation",
    "StoreIndex",
    "TierContents",
    "TierRun",
    "TierSize",
    "block_hashes",
    "cache_keys",
    "cache_root",
    "check_tier_sizes",
    "deepest",
    "digest",
    "eviction_policy",
    "layout_namespace",
    "next_cache_key",
    "onboarding_policy",
    "prefix_keys",
    "routing_hashes",
    "routing_seed",
    "sequence_hashes",
]
