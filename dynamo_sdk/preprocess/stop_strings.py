"""Find stop strings in streamed text without ever letting a part of one out.

Text goes in piece by piece. What could still become a stop string is held back; what cannot is released.
A stop string counts at the moment it is complete, so the result does not depend on how the text was cut:
of all occurrences in the whole text, the one that *ends* first wins, and of those the longest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


class StopStringMatcher:
    """One stream's matcher; ``hit`` is the stop string that was found, and then nothing more comes out."""

    __slots__ = ("_find_start", "_held", "_longest", "_stops", "hit")

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._find_start = _any_of(frozenset(stop[0] for stop in self._stops)).search
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """The text that is now certain to come before any stop string."""
        if self.hit is not None:
            return ""
        if (
            not self._held and self._find_start(text) is None
        ):  # nearly always, and then there is nothing to hold
            return text
        pending = self._held + text
        found = self._first_stop(pending)
        if found is not None:
            start, self.hit = found
            self._held = ""
            return pending[:start]
        num_held = self._num_held(pending)
        self._held = pending[len(pending) - num_held :]
        return pending[: len(pending) - num_held]

    def finish(self) -> str:
        """What was held back, now that the text has ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, pending: str) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = pending.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _num_held(self, pending: str) -> int:
        """Length of the longest end of ``pending`` that a stop string starts with."""
        window = max(0, len(pending) - self._longest + 1)
        best = 0
        for stop in self._stops:
            start = pending.find(stop[0], window)
            while start >= 0:
                if stop.startswith(pending[start:]):
                    best = max(best, len(pending) - start)
                    break
                start = pending.find(stop[0], start + 1)
        return best


@lru_cache(maxsize=256)
def _any_of(characters: frozenset[str]) -> re.Pattern[str]:
    """Matches one of ``characters``; without any, nothing."""
    return re.compile("[" + re.escape("".join(sorted(characters))) + "]" if characters else r"(?!)")
