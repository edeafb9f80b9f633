"""How long something takes, learned from how long it took: a line through recent measurements.

``seconds = fixed + per_unit * units``, by least squares over all measurements, each weighted by its age:
after ``half_life_s`` it counts half. Sums are all that is kept. Where the measurements do not tell the two
numbers apart (all of about one size), or the line would have a negative one, it goes through the origin.
"""

from __future__ import annotations

import math

HALF_LIFE_S = 60.0
MIN_WEIGHT = 0.01
"""Below this (one measurement, almost seven half-lives ago) nothing is known any more."""

_MIN_SPREAD = 0.05  # variance of the sizes to their mean square, for a line that means something


class MeasuredTime:
    """Times are the caller's clock, in seconds, and never go back."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        if half_life_s <= 0:
            raise ValueError(f"half_life_s must be above 0, not {half_life_s}")
        self._decay = math.log(2) / half_life_s
        self._now_s = 0.0
        self._weight = self._units = self._seconds = self._units_squared = self._product = 0.0

    def observe(self, units: float, seconds: float, now_s: float) -> None:
        """``units`` took ``seconds``. What is not a positive number teaches nothing and is ignored."""
        if not (0 < units < math.inf and 0 < seconds < math.inf):
            return
        faded = self._faded(now_s)
        self._weight = self._weight * faded + 1
        self._units = self._units * faded + units
        self._seconds = self._seconds * faded + seconds
        self._units_squared = self._units_squared * faded + units * units
        self._product = self._product * faded + units * seconds
        self._now_s = max(now_s, self._now_s)

    def weight(self, now_s: float) -> float:
        """How many fresh measurements what is known is worth."""
        return self._weight * self._faded(now_s)

    def estimate_s(self, units: float, now_s: float) -> float | None:
        """None while nothing is known, or no longer."""
        if self.weight(now_s) < MIN_WEIGHT:
            return None
        if units <= 0:
            return 0.0
        fixed_s, per_unit_s = self._line()
        return fixed_s + per_unit_s * units

    def _line(self) -> tuple[float, float]:
        mean_units, mean_seconds = self._units / self._weight, self._seconds / self._weight
        through_origin = (0.0, mean_seconds / mean_units)
        variance = self._units_squared / self._weight - mean_units * mean_units
        if variance < _MIN_SPREAD * mean_units * mean_units:
            return through_origin
        per_unit_s = (self._product / self._weight - mean_units * mean_seconds) / variance
        fixed_s = mean_seconds - per_unit_s * mean_units
        if per_unit_s <= 0 or fixed_s < 0:
            return through_origin
        return fixed_s, per_unit_s

    def _faded(self, now_s: float) -> float:
        return math.exp(-self._decay * max(0.0, now_s - self._now_s))


class MeasuredTimeBySize:
    """A ``MeasuredTime`` for each power of two of some size, for what gets dearer with it. Where nothing is
    known, the next size that is known stands in."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._classes: dict[int, MeasuredTime] = {}

    def observe(self, size: int, units: float, seconds: float, now_s: float) -> None:
        if size >= 0:
            known = self._classes.setdefault(size.bit_length(), MeasuredTime(self._half_life_s))
            known.observe(units, seconds, now_s)

    def estimate_s(self, size: int, units: float, now_s: float) -> float | None:
        wanted = size.bit_length()
        for _, known in sorted(self._classes.items(), key=lambda item: (abs(item[0] - wanted), item[0])):
            estimate_s = known.estimate_s(units, now_s)
            if estimate_s is not None:
                return estimate_s
        return None
