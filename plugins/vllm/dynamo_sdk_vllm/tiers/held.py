"""``HeldBlocks``: what the tiers hold, as vLLM's workers say, and what is on its way there.

A tier that reads other workers of the SDK holds what a request's hint says of it, for that request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import TierRun

from .messages import TierChange

PENDING_S = 1.0
"""A save of which nothing was heard for so long is not waited for."""


class Lookups:
    """By tier: blocks that requests asked for, and those that were there."""

    def __init__(self) -> None:
        self.num_asked: Counter[str] = Counter()
        self.num_hits: Counter[str] = Counter()


class HeldBlocks:
    """``tiers``: names, from the fastest down. Of several workers each holds its part of a block: only what
    all of them have is there."""

    def __init__(self, tiers: Sequence[str], num_ranks: int) -> None:
        self._tiers = tuple(tiers)
        self._everybody = (1 << num_ranks) - 1
        self._ranks_of: list[dict[CacheKey, int]] = [{} for _ in tiers]
        self._pending: dict[CacheKey, tuple[int, float]] = {}
        self._peer_tiers: set[int] = set()

    def follow_hints(self, tiers: Iterable[int]) -> None:
        """These read other workers."""
        self._peer_tiers.update(tiers)

    def change(self, rank: int, change: TierChange) -> list[CacheKey]:
        """Which keys came or went by it."""
        ranks_of, mine = self._ranks_of[change.tier], 1 << rank
        changed: list[CacheKey] = []
        for key in change.keys:
            before = ranks_of.get(key, 0)
            after = before | mine if change.is_stored else before & ~mine
            if after:
                ranks_of[key] = after
            else:
                ranks_of.pop(key, None)
            if change.is_stored:
                self._pending.pop(key, None)
            if (before == self._everybody) != (after == self._everybody):
                changed.append(key)
        return changed

    def lose(self, rank: int, keys: Sequence[CacheKey]) -> list[TierChange]:
        """These could not be loaded, whatever was said of them. What that takes from which tier."""
        lost = [TierChange(tier, False, tuple(keys)) for tier in range(len(self._tiers))]
        return [TierChange(change.tier, False, tuple(self.change(rank, change))) for change in lost]

    def runs(
        self, keys: Sequence[CacheKey], lookups: Lookups | None = None, *, num_at_peer: int = 0
    ) -> list[TierRun]:
        """Runs of leading ``keys``, each in the fastest tier that has its first block. Another worker is said
        to have the first ``num_at_peer``."""
        runs: list[TierRun] = []
        at = 0
        while at < len(keys):
            run = self._run(keys[at:], num_at_peer - at)
            if run is None:
                break
            runs.append(run)
            at += run.num_blocks
        if lookups is not None:
            self._count(runs, len(keys), lookups)
        return runs

    def _run(self, keys: Sequence[CacheKey], num_at_peer: int) -> TierRun | None:
        for number, (name, ranks_of) in enumerate(zip(self._tiers, self._ranks_of, strict=True)):
            if number in self._peer_tiers:
                num_blocks = min(num_at_peer, len(keys))
            else:
                missing = (at for at, key in enumerate(keys) if ranks_of.get(key) != self._everybody)
                num_blocks = next(missing, len(keys))
            if num_blocks > 0:
                return TierRun(tier=name, num_blocks=num_blocks)
        return None

    def _count(self, runs: Sequence[TierRun], num_blocks: int, lookups: Lookups) -> None:
        """Each block once, though a tier may be asked again behind another one's run."""
        for name in self._tiers:
            num_hits = sum(run.num_blocks for run in runs if run.tier == name)
            lookups.num_asked[name] += num_blocks
            lookups.num_hits[name] += num_hits
            num_blocks -= num_hits

    def has(self, key: CacheKey) -> bool:
        return any(ranks_of.get(key) == self._everybody for ranks_of in self._ranks_of)

    # -- saves under way

    def expect(self, key: CacheKey, step: int, now_s: float) -> None:
        """It is saved after ``step``."""
        self._pending[key] = step, now_s

    def settle(self, step: int) -> None:
        """Saves up to ``step`` are over: what is not held by now will not be."""
        for key in [key for key, (saved_at, _) in self._pending.items() if saved_at <= step]:
            del self._pending[key]

    def is_pending(self, key: CacheKey, now_s: float) -> bool:
        known = self._pending.get(key)
        return known is not None and now_s - known[1] < PENDING_S
