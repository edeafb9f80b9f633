"""How fast workers are, as measured from the requests that they have served.

What the first tokens of an engine step take is a sum, found by least squares over the pool, the old fading::

    seconds = requests * s_per_request + uncached tokens * s_per_token + active tokens * s_per_active_token

Active tokens are those of the requests that decode beside: a prompt waits for their steps. A worker differs
from its pool by one factor, its *slowness*; that fades with time, so that a worker which was avoided as slow
is tried again.
"""

from __future__ import annotations

import math

PRIOR_S_PER_REQUEST = 0.01
PRIOR_S_PER_TOKEN = 1e-4
PRIOR_S_PER_ACTIVE_TOKEN = 1e-7
PRIOR_DECODE_S_PER_TOKEN = 0.02
"""What is assumed before anything was measured: a GPU of the day, a model of some ten billion parameters."""

_PRIOR_WEIGHT = 0.1  # of an observation
_KEEP = 1 - 1 / 512  # of the past, per observation
_TOKENS_PER_WEIGHT = 1024.0
_ACTIVE_TOKENS = 65536.0  # the unit in which they enter, so that the sums are alike in size
_MAX_SURPRISE = 10.0
_MAX_SLOWNESS = 100.0
_USUAL_SLOWNESS = 1.25

_Three = tuple[float, float, float]


class PrefillModel:
    """Non-negative least squares over what a pool did. An observation: in ``seconds``, ``num_requests`` got
    their first token, for which ``num_tokens`` were computed, beside ``num_active_tokens``."""

    __slots__ = (
        "_products",
        "_sums",
        "num_observations",
        "s_per_active_token",
        "s_per_request",
        "s_per_token",
    )

    def __init__(self) -> None:
        units = (1.0, _TOKENS_PER_WEIGHT, _ACTIVE_TOKENS)
        prior = (PRIOR_S_PER_REQUEST, PRIOR_S_PER_TOKEN, PRIOR_S_PER_ACTIVE_TOKEN)
        self._products = [
            [_PRIOR_WEIGHT if row == column else 0.0 for column in range(3)] for row in range(3)
        ]
        self._sums = [_PRIOR_WEIGHT * unit * seconds for unit, seconds in zip(units, prior, strict=True)]
        self.num_observations = 0
        self.s_per_request, self.s_per_token, self.s_per_active_token = prior

    def seconds(self, num_requests: int, num_tokens: int, num_active_tokens: int) -> float:
        return (
            num_requests * self.s_per_request
            + num_tokens * self.s_per_token
            + num_active_tokens * self.s_per_active_token
        )

    def observe(self, num_requests: int, num_tokens: int, num_active_tokens: int, seconds: float) -> None:
        """One that takes ten times what was expected counts as ten times: the rest is a fault, not a rate."""
        if self.num_observations >= 16:
            expected_s = self.seconds(num_requests, num_tokens, num_active_tokens)
            seconds = min(seconds, _MAX_SURPRISE * expected_s)
        self.num_observations += 1
        size = num_tokens / _TOKENS_PER_WEIGHT
        weight = 1 / (num_requests + size)  # large ones vary as much more
        values = (float(num_requests), size, num_active_tokens / _ACTIVE_TOKENS)
        for row, (products, value) in enumerate(zip(self._products, values, strict=True)):
            for column, other in enumerate(values):
                products[column] = _KEEP * products[column] + weight * value * other
            self._sums[row] = _KEEP * self._sums[row] + weight * value * seconds
        found = _non_negative(self._products, self._sums)
        self.s_per_request = found[0]
        self.s_per_token = found[1] / _TOKENS_PER_WEIGHT
        self.s_per_active_token = found[2] / _ACTIVE_TOKENS


def _non_negative(products: list[list[float]], sums: list[float]) -> _Three:
    """Solve for three numbers; the most negative one is left out, as 0, until none is."""
    kept = [0, 1, 2]
    while kept:
        solved = _solve([[products[row][column] for column in kept] for row in kept], [sums[i] for i in kept])
        lowest = min(solved)
        if lowest >= 0:
            found = dict(zip(kept, solved, strict=True))
            return found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0)
        del kept[solved.index(lowest)]
    return 0.0, 0.0, 0.0


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination of a symmetric positive matrix, which needs no pivots."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
            right[row] -= factor * right[pivot]
    solved = [0.0] * size
    for row in reversed(range(size)):
        rest = sum(matrix[row][column] * solved[column] for column in range(row + 1, size))
        solved[row] = (right[row] - rest) / matrix[row][row]
    return solved


class Slowness:
    """How much longer a worker takes than its pool would: a ratio, 1 for one of which nothing is known."""

    __slots__ = ("_actual_s", "_at_s", "_expected_s")

    HALF_LIFE_S = 30.0
    PRIOR_OBSERVATIONS = 4

    def __init__(self) -> None:
        self._actual_s = self._expected_s = self._at_s = 0.0

    def observe(self, actual_s: float, expected_s: float, now_s: float) -> None:
        self._fade(now_s)
        self._actual_s += actual_s
        self._expected_s += expected_s

    def factor(self, prior_s: float, now_s: float) -> float:
        """``prior_s``: what ``PRIOR_OBSERVATIONS`` usual ones take; they say that it is like the others. What
        is within a quarter of 1 is chance: if it counted, all requests would run to the luckiest worker."""
        self._fade(now_s)
        factor = (self._actual_s + prior_s) / (self._expected_s + prior_s)
        if factor > 1:
            return min(max(factor / _USUAL_SLOWNESS, 1.0), _MAX_SLOWNESS)
        return max(min(factor * _USUAL_SLOWNESS, 1.0), 1 / _MAX_SLOWNESS)

    def _fade(self, now_s: float) -> None:
        keep = math.exp2(-max(0.0, now_s - self._at_s) / self.HALF_LIFE_S)
        self._actual_s *= keep
        self._expected_s *= keep
        self._at_s = max(self._at_s, now_s)


class Average:
    """An average in which the last ``size`` values or so count; ``prior`` counts as one of them."""

    __slots__ = ("_num", "_size", "value")

    def __init__(self, prior: float, size: int) -> None:
        self.value = prior
        self._size = size
        self._num = 1

    def add(self, value: float) -> None:
        self._num = min(self._num + 1, self._size)
        self.value += (value - self.value) / self._num
