"""``PrefixIndex`` as one would write it first: a dictionary of blocks per seat and tier."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces.router import Overlap
from dynamo_sdk.types import KVTier

Prefix = tuple[int, ...]
"""A block and all before it, as letters; the naive index knows no keys."""


class NaiveIndex:
    def __init__(self) -> None:
        self.names: dict[tuple[int, KVTier], dict[int, Prefix]] = {}

    def store(
        self, seat: int, parent: int | None, names: Sequence[int], blocks: Sequence[int], tier: KVTier
    ) -> bool:
        prefix: Prefix | None = ()
        if parent is not None:
            prefix = self._find(seat, parent, tier)
        if prefix is None:
            return False
        held = self.names.setdefault((seat, tier), {})
        for name, block in zip(names, blocks, strict=True):
            prefix = (*prefix, block)
            for old in [old for old, known in held.items() if known == prefix]:
                del held[old]
            held[name] = prefix
        return True

    def remove(self, seat: int, names: Sequence[int], tier: KVTier) -> None:
        for name in names:
            self.names.get((seat, tier), {}).pop(name, None)

    def move(self, seat: int, names: Sequence[int], tier: KVTier, to_tier: KVTier) -> None:
        for name in names:
            prefix = self.names.get((seat, tier), {}).pop(name, None)
            if prefix is not None:
                held = self.names.setdefault((seat, to_tier), {})
                for old in [old for old, known in held.items() if known == prefix]:
                    del held[old]
                held[name] = prefix

    def clear(self, seat: int) -> None:
        for tier in KVTier:
            self.names.pop((seat, tier), None)

    def match(self, prompt: Sequence[int]) -> dict[int, Overlap]:
        found: dict[int, Overlap] = {}
        for seat in {seat for seat, _tier in self.names}:
            counts = dict.fromkeys(KVTier, 0)
            for length in range(1, len(prompt) + 1):
                prefix = tuple(prompt[:length])
                tier = next((tier for tier in KVTier if prefix in self._held(seat, tier)), None)
                if tier is None:
                    break
                counts[tier] += 1
            if any(counts.values()):
                found[seat] = Overlap(
                    **{f"{tier.value}_blocks": count for tier, count in counts.items()},
                    readable_blocks=self._num_readable(seat, prompt),
                )
        return found

    def _num_readable(self, seat: int, prompt: Sequence[int]) -> int:
        readable = self._held(seat, KVTier.HOST) | self._held(seat, KVTier.DISK)
        lengths = range(1, len(prompt) + 1)
        return next((n - 1 for n in lengths if tuple(prompt[:n]) not in readable), len(prompt))

    @property
    def num_entries(self) -> int:
        return sum(map(len, self.names.values()))

    def _held(self, seat: int, tier: KVTier) -> set[Prefix]:
        return set(self.names.get((seat, tier), {}).values())

    def _find(self, seat: int, name: int, tier: KVTier) -> Prefix | None:
        for where in (tier, *KVTier):
            prefix = self.names.get((seat, where), {}).get(name)
            if prefix is not None:
                return prefix
        return None
