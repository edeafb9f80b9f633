"""Which block is said to be at which other worker. Hints, for a while."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import CacheKey


class Expectations:
    """Bounded; the oldest go first. Times are the caller's clock in seconds."""

    def __init__(self, max_keys: int, lifetime_s: float) -> None:
        self._max_keys = max_keys
        self._lifetime_s = lifetime_s
        self._sources: dict[CacheKey, tuple[str, float]] = {}  # address, until when; the oldest first

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, keys: Sequence[CacheKey], address: str, now_s: float) -> None:
        """What was said of ``keys`` before is forgotten."""
        until_s = now_s + self._lifetime_s
        for key in keys[: self._max_keys]:  # the beginning of a sequence is worth most
            self._sources.pop(key, None)
            self._sources[key] = (address, until_s)
        while len(self._sources) > self._max_keys:
            del self._sources[next(iter(self._sources))]

    def source(self, key: CacheKey, now_s: float) -> str | None:
        address, until_s = self._sources.get(key, (None, now_s))
        return address if until_s > now_s else None

    def remove(self, keys: Sequence[CacheKey]) -> None:
        for key in keys:
            self._sources.pop(key, None)

    def remove_source(self, address: str) -> None:
        """Nothing is expected there any more."""
        self._sources = {key: entry for key, entry in self._sources.items() if entry[0] != address}
