"""``TierEvents``: what is said of the tiers in vLLM's own stream of KV events, under vLLM's own names.

The tiers know keys alone; names, tokens and predecessors are known while a request is there. So a block that
a disk has from before a restart is told of when a request first asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.types import KVTier
from dynamo_sdk.types.tokens import PackedTokens

MAX_WAITING = 65_536
"""Blocks that are known and in no tier: on their way there, or refused."""


@dataclass(frozen=True, slots=True)
class KnownBlock:
    """``name``, ``parent``: vLLM's, of the block and of the one before it."""

    name: bytes
    parent: bytes | None
    tokens: PackedTokens
    lora: str | None
    cache_salt: str | None


@dataclass(frozen=True, slots=True)
class TierEvent:
    """``block`` can be found in ``tier`` from now on, or no longer."""

    tier: KVTier
    is_stored: bool
    block: KnownBlock


class TierEvents:
    """``tiers``: what they are, from the fastest down; two of one kind are told of as one."""

    def __init__(self, tiers: Sequence[KVTier]) -> None:
        self._tiers = tuple(tiers)
        self._waiting: OrderedDict[CacheKey, KnownBlock] = OrderedDict()
        self._known: dict[CacheKey, KnownBlock] = {}
        self._held_in: dict[CacheKey, set[int]] = {}
        self._events: list[TierEvent] = []

    def is_untold(self, key: CacheKey) -> bool:
        """Some tier has it, and nobody knows what it is."""
        return key in self._held_in and key not in self._known

    def learn(self, key: CacheKey, block: KnownBlock) -> None:
        """What ``key`` is; parents first."""
        if key not in self._held_in:
            self._waiting[key] = block
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popitem(last=False)
        elif key not in self._known:
            self._known[key] = block
            for tier in {self._tiers[number] for number in self._held_in[key]}:
                self._events.append(TierEvent(tier, True, block))

    def stored(self, number: int, keys: Iterable[CacheKey]) -> None:
        for key in keys:
            block = self._known.get(key) or self._waiting.pop(key, None)
            is_told = self._is_told(key, number)
            self._held_in.setdefault(key, set()).add(number)
            if block is not None:
                self._known[key] = block
                if not is_told:
                    self._events.append(TierEvent(self._tiers[number], True, block))

    def removed(self, number: int, keys: Iterable[CacheKey]) -> None:
        for key in keys:
            held_in = self._held_in.get(key, set())
            if number not in held_in:
                continue
            held_in.discard(number)
            block = self._known.get(key)
            if block is not None and not self._is_told(key, number):
                self._events.append(TierEvent(self._tiers[number], False, block))
            if not held_in:
                del self._held_in[key]
                self._known.pop(key, None)

    def take(self) -> list[TierEvent]:
        """Since the last call."""
        events, self._events = self._events, []
        return events

    def _is_told(self, key: CacheKey, number: int) -> bool:
        """By another tier of this kind."""
        kind = self._tiers[number]
        return any(self._tiers[other] is kind for other in self._held_in.get(key, ()) if other != number)
