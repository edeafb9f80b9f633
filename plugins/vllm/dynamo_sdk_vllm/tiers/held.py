"""``HeldBlocks``: what the tiers hold, as the workers say, and what is on its way there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import TierRun

from .messages import TierChange

PENDING_S = 1.0
"""A save of which nothing was heard for so long is not waited for."""


class HeldBlocks:
    """``tiers``: names, from the fastest down. Of several workers each holds its part of a block: only what
    all of them have is there."""

    def __init__(self, tiers: Sequence[str], num_ranks: int) -> None:
        self._tiers = tuple(tiers)
        self._everybody = (1 << num_ranks) - 1
        self._ranks_of: list[dict[CacheKey, int]] = [{} for _ in tiers]
        self._pending: dict[CacheKey, tuple[int, float]] = {}

    def change(self, rank: int, change: TierChange) -> None:
        ranks_of, mine = self._ranks_of[change.tier], 1 << rank
        for key in change.keys:
            if change.is_stored:
                ranks_of[key] = ranks_of.get(key, 0) | mine
                self._pending.pop(key, None)
            else:
                self._drop(ranks_of, key, mine)

    def lose(self, rank: int, keys: Iterable[CacheKey]) -> None:
        """These could not be loaded, whatever was said of them."""
        for key in keys:
            for ranks_of in self._ranks_of:
                self._drop(ranks_of, key, 1 << rank)

    def runs(self, keys: Sequence[CacheKey]) -> list[TierRun]:
        """Runs of leading ``keys``, each in the fastest tier that has it."""
        runs: list[tuple[int, int]] = []
        for key in keys:
            tier = self._tier_of(key)
            if tier is None:
                break
            if runs and runs[-1][0] == tier:
                runs[-1] = tier, runs[-1][1] + 1
            else:
                runs.append((tier, 1))
        return [TierRun(tier=self._tiers[tier], num_blocks=num_blocks) for tier, num_blocks in runs]

    def has(self, key: CacheKey) -> bool:
        return self._tier_of(key) is not None

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

    def _tier_of(self, key: CacheKey) -> int | None:
        for tier, ranks_of in enumerate(self._ranks_of):
            if ranks_of.get(key) == self._everybody:
                return tier
        return None

    @staticmethod
    def _drop(ranks_of: dict[CacheKey, int], key: CacheKey, rank: int) -> None:
        left = ranks_of.get(key, 0) & ~rank
        if left:
            ranks_of[key] = left
        else:
            ranks_of.pop(key, None)
