"""How fast workers are, as measured from the requests that they have served.

Prefill: ``seconds = requests * s_per_request + tokens * s_per_token``, least squares through the origin over
the pool, old observations fading. A worker differs from its pool by one factor, its *slowness*; that fades
with time, so that a worker which was avoided for being slow is tried again.
"""

from __future__ import annotations

import math

PRIOR_S_PER_REQUEST = 0.01
PRIOR_S_PER_TOKEN = 1e-4
PRIOR_DECODE_S_PER_TOKEN = 0.02
"""What is assumed before anything was measured: a GPU of the day, a model of some ten billion parameters."""

_PRIOR_WEIGHT = 0.1  # of an observation
_KEEP = 1 - 1 / 512  # of the past, per observation
_TOKENS_PER_WEIGHT = 1024.0
_MAX_SURPRISE = 10.0
_MAX_SLOWNESS = 100.0


class PrefillModel:
    """Least squares over what a pool did. An observation: in ``seconds`` of work, ``num_requests`` got their
    first token, for which ``num_tokens`` were computed."""

    __slots__ = ("_rr", "_rs", "_rt", "_ts", "_tt", "num_observations", "s_per_request", "s_per_token")

    def __init__(self) -> None:
        self._rr = _PRIOR_WEIGHT
        self._rs = _PRIOR_WEIGHT * PRIOR_S_PER_REQUEST
        self._rt = 0.0
        self._tt = _PRIOR_WEIGHT * _TOKENS_PER_WEIGHT**2
        self._ts = self._tt * PRIOR_S_PER_TOKEN
        self.num_observations = 0
        self.s_per_request = PRIOR_S_PER_REQUEST
        self.s_per_token = PRIOR_S_PER_TOKEN

    def seconds(self, num_requests: int, num_tokens: int) -> float:
        return num_requests * self.s_per_request + num_tokens * self.s_per_token

    def observe(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        """One that takes ten times what was expected counts as ten times: the rest is a fault, not a rate."""
        if self.num_observations >= 16:
            seconds = min(seconds, _MAX_SURPRISE * self.seconds(num_requests, num_tokens))
        self.num_observations += 1
        weight = 1 / (num_requests + num_tokens / _TOKENS_PER_WEIGHT)  # large ones vary as much more
        self._rr = _KEEP * self._rr + weight * num_requests * num_requests
        self._rt = _KEEP * self._rt + weight * num_requests * num_tokens
        self._tt = _KEEP * self._tt + weight * num_tokens * num_tokens
        self._rs = _KEEP * self._rs + weight * num_requests * seconds
        self._ts = _KEEP * self._ts + weight * num_tokens * seconds
        self._solve()

    def _solve(self) -> None:
        """Neither cost is negative: where one would be, the other explains everything."""
        determinant = self._rr * self._tt - self._rt * self._rt
        if determinant > 1e-9 * self._rr * self._tt:
            self.s_per_request = (self._rs * self._tt - self._ts * self._rt) / determinant
            self.s_per_token = (self._ts * self._rr - self._rs * self._rt) / determinant
        else:
            self.s_per_request = -1.0
        if self.s_per_request < 0:
            self.s_per_request, self.s_per_token = 0.0, self._ts / self._tt
        elif self.s_per_token < 0:
            self.s_per_request, self.s_per_token = self._rs / self._rr, 0.0


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
        """``prior_s``: what ``PRIOR_OBSERVATIONS`` usual ones take; they say that it is like the others."""
        self._fade(now_s)
        factor = (self._actual_s + prior_s) / (self._expected_s + prior_s)
        return min(max(factor, 1 / _MAX_SLOWNESS), _MAX_SLOWNESS)

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
