"""Tiers below an engine's device: what an engine is started with, and what it says of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from dynamo_sdk.types.kv_events import KVTier
from dynamo_sdk.types.plan import KVTierPlan

from .kv_store import KVStore, KVStoreStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class KVTierSetup:
    """One tier, as ``EngineSetup.kv_tiers`` has them from the fastest down. ``name``: unique among them;
    ``tier``: as KV events call it. ``build(block_bytes)`` makes its store, not yet started; raises
    ``ConfigError`` and ``PluginError``. ``plan``: the same as data, for engines whose blocks are in another
    process. ``may_lack``: the worker has served with it before; when its store does not start, it serves
    without."""

    name: str
    tier: KVTier
    plan: KVTierPlan
    build: Callable[[int], KVStore]
    may_lack: bool = False


class KVTierCounts(msgspec.Struct, kw_only=True):
    """What one tier did since the start; grows where it is counted.

    *Asked*: ``num_hit_blocks`` of ``num_lookup_blocks``, by requests that arrived. *Up*: blocks that were
    loaded for requests. *Down*: blocks that were written, from the device or from a tier above;
    ``num_missed_blocks`` were gone before their turn.
    """

    num_lookup_blocks: int = 0
    num_hit_blocks: int = 0
    num_onboarded_blocks: int = 0
    onboarded_bytes: int = 0
    onboard_s: float = 0.0
    num_offloaded_blocks_from_device: int = 0
    num_offloaded_blocks_from_tiers: int = 0
    offloaded_bytes: int = 0
    offload_s: float = 0.0
    num_missed_blocks: int = 0
    num_failures: int = 0


class KVTierStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Of one tier. ``num_queued_blocks`` wait for it now; ``num_dropped_blocks``, since the start: there were
    too many; ``num_refused_blocks``: by filters, with the reason."""

    name: str
    tier: KVTier
    store: KVStoreStatistics
    counts: KVTierCounts = msgspec.field(default_factory=KVTierCounts)
    num_queued_blocks: int = 0
    num_dropped_blocks: int = 0
    num_refused_blocks: dict[str, int] = {}


class KVTiersStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """``num_decisions``: how often loading was weighed against computing, by the outcome (``load``,
    ``recompute``, ``unmeasured``). ``num_matched_tokens``: found in some tier by requests that arrived."""

    tiers: tuple[KVTierStatistics, ...]
    num_matched_tokens: int = 0
    num_decisions: dict[str, int] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableTiers:
    """``stores``: those of a worker that others may read, the fastest first; open until the engine closes.
    Blocks have ``block_bytes``."""

    stores: tuple[KVStore, ...]
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSharing:
    """How a worker opens its tiers to others: ``address`` to listen at, such as ``unix:/path`` or
    ``tcp:host:0``, and the ``secret`` of the deployment."""

    address: str
    secret: str | None = field(default=None, repr=False)


class KVSharingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What others asked for, counts since the start: ``num_blocks`` of ``num_lookups`` were there, and
    ``num_refused`` asks came while too many others were served."""

    num_lookups: int = 0
    num_blocks: int = 0
    num_refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTiers:
    """Tiers whose stores are in a process of the engine's own, which has others read them there, as
    ``EngineSetup.kv_sharing`` says. ``address``: where they are reached, until the engine closes."""

    address: str
    statistics: Callable[[], KVSharingStatistics]


class HasKVTiers(ABC):
    """An engine that keeps blocks in the tiers that it was started with."""

    def readable_tiers(self) -> ReadableTiers | ServedTiers | None:
        """What others may read, where one of the tiers reads from others; asked once it has started. Default:
        nothing."""
        return None

    @abstractmethod
    def kv_tier_statistics(self) -> KVTiersStatistics:
        """What the tiers hold and did; must not block."""
