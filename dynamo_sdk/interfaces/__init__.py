"""What a plugin author reads: one interface, one file."""

from .block_memory import BlockMemory, BlockReservation, ExposesBlocks, MemorySpan, SharedRegion
from .discovery import Discovery, Fleet, Lease
from .engine import (
    AdaptsLora,
    Embeds,
    Engine,
    EngineFacts,
    EngineSetup,
    OpensSources,
    ProbesItself,
    Promise,
    PublishesKVEvents,
    PublishesMetrics,
)
from .item_source import ItemSource
from .kv_connector import Handover, KVConnector
from .kv_peers import ReadsPeers
from .kv_store import (
    BlockOffer,
    CacheKey,
    KVStore,
    KVStoreFailure,
    KVStoreFailureKind,
    KVStoreListener,
    KVStoreStatistics,
)
from .kv_tiers import HasKVTiers, KVTierSetup, KVTiersStatistics, KVTierStatistics
from .launcher import Launcher, LaunchOptions
from .planner import Planner, PlannerEffects, PlannerInput, ServiceLoad
from .router import (
    Candidate,
    CandidateCost,
    CostTerm,
    Freed,
    Overlap,
    PrefillDone,
    Routed,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)

__all__ = [
    "AdaptsLora",
    "BlockMemory",
    "BlockOffer",
    "BlockReservation",
    "CacheKey",
    "Candidate",
    "CandidateCost",
    "CostTerm",
    "Discovery",
    "Embeds",
    "Engine",
    "EngineFacts",
    "EngineSetup",
    "ExposesBlocks",
    "Fleet",
    "Freed",
    "Handover",
    "HasKVTiers",
    "ItemSource",
    "KVConnector",
    "KVStore",
    "KVStoreFailure",
    "KVStoreFailureKind",
    "KVStoreListener",
    "KVStoreStatistics",
    "KVTierSetup",
    "KVTierStatistics",
    "KVTiersStatistics",
    "LaunchOptions",
    "Launcher",
    "Lease",
    "MemorySpan",
    "OpensSources",
    "Overlap",
    "Planner",
    "PlannerEffects",
    "PlannerInput",
    "PrefillDone",
    "ProbesItself",
    "Promise",
    "PublishesKVEvents",
    "PublishesMetrics",
    "ReadsPeers",
    "Routed",
    "Router",
    "RouterFact",
    "RoutingContext",
    "RoutingDecision",
    "RoutingRequest",
    "ServiceLoad",
    "SharedRegion",
]
