"""What the scheduler's half and the workers' halves tell each other, with every step of vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import CachedBlock
from dynamo_sdk.types import KVSource
from dynamo_sdk.types.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Fill ``block_ids[i]`` with the block ``keys[i]``. ``limit_s``: then it had better be computed.
    ``source``: the worker that is said to have the first of them."""

    request_id: str
    keys: tuple[CacheKey, ...]
    block_ids: tuple[int, ...]
    limit_s: float | None
    source: KVSource | None = None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A request for the blocks ``keys`` arrived, of which the device has the first ``num_device_blocks``.
    ``prompt``: packed tokens; ``priority``: smaller runs first. ``is_new``: its blocks count as used once
    more; ``is_probe``: the tiers that hold them should be measured. ``source``: as in ``LoadOrder``."""

    keys: tuple[CacheKey, ...]
    num_device_blocks: int
    prompt: PackedTokens
    lora: str | None
    cache_salt: str | None
    priority: int
    is_new: bool
    is_probe: bool
    source: KVSource | None = None


@dataclass(slots=True)
class Orders:
    """Of one step. ``overwritten``: device blocks whose content is over when the step begins. ``saves``:
    blocks that are full when it has ended. ``is_idle``: nothing is computed, the step may take its time."""

    step: int
    is_idle: bool
    overwritten: list[int] = field(default_factory=list[int])
    saves: list[tuple[CachedBlock, int]] = field(default_factory=list[tuple[CachedBlock, int]])
    loads: list[LoadOrder] = field(default_factory=list[LoadOrder])
    sightings: list[Sighting] = field(default_factory=list[Sighting])


@dataclass(frozen=True, slots=True)
class TierChange:
    """``keys`` can be found in tier ``tier`` from now on, or no longer."""

    tier: int
    is_stored: bool
    keys: tuple[CacheKey, ...]


@dataclass(frozen=True, slots=True)
class TierLoad:
    """A load of ``num_blocks`` from ``tier`` took ``seconds``."""

    tier: str
    num_blocks: int
    seconds: float


@dataclass(slots=True)
class Report:
    """Of one worker after step ``step``. ``settled``: all saves up to that step are stored or will not be.
    ``lost``: keys that were to be loaded and could not be; ``cut_short``: requests whose loads they ended.
    ``peer_tiers``: those that find what other workers have; said once."""

    rank: int
    step: int
    settled: int = -1
    changes: list[TierChange] = field(default_factory=list[TierChange])
    loads: list[TierLoad] = field(default_factory=list[TierLoad])
    lost: list[CacheKey] = field(default_factory=list[CacheKey])
    cut_short: list[str] = field(default_factory=list[str])
    peer_tiers: list[int] = field(default_factory=list[int])
