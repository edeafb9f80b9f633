"""What generators draw from: arrival times, lengths, and pieces of text, new or said before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

_SPREAD = 0.8


class Source:
    """Chance and ids of one workload. ``block_tokens``: what one id names."""

    def __init__(self, seed: int, block_tokens: int) -> None:
        self.rng = Random(seed)
        self.block_tokens = block_tokens
        self._num_ids = 0

    def new_ids(self, num_tokens: int) -> list[int]:
        """Ids that cover at least so many tokens; nobody has said them before."""
        first = self._num_ids
        self._num_ids += -(-num_tokens // self.block_tokens)
        return list(range(first, self._num_ids))

    def poisson_times(self, rate: float) -> Iterator[float]:
        """Seconds; ``rate`` a second."""
        at_s = 0.0
        while True:
            at_s += self.rng.expovariate(rate)
            yield at_s

    def length(self, mean: float) -> int:
        """Tokens, at least 1: mostly fewer than the mean, sometimes many more (log-normal)."""
        return max(1, round(self.rng.lognormvariate(math.log(mean) - _SPREAD**2 / 2, _SPREAD)))


class Stream:
    """What one session has said so far. ``ids`` name it; the last one may reach beyond its end."""

    def __init__(self, source: Source, ids: list[int], num_tokens: int) -> None:
        self._source = source
        self._ids = list(ids)
        self.num_tokens = num_tokens

    def say(self, num_tokens: int) -> None:
        """It goes on."""
        self.num_tokens += num_tokens
        missing = self.num_tokens - len(self._ids) * self._source.block_tokens
        if missing > 0:
            self._ids += self._source.new_ids(missing)

    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids)
