"""Which blocks a remote store has, known as far as somebody has asked lately.

Asking costs a round trip. So answers are remembered for a while, and how far a sequence goes is searched for
with a few questions at once instead of one for every block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynamo_sdk.interfaces import CacheKey


class PresenceCache:
    """Bounded; times are the caller's clock in seconds. What was found *present* is asked again after
    ``present_s``, what was *absent* after ``absent_s``: others may have added or removed it."""

    def __init__(self, *, max_keys: int, present_s: float, absent_s: float) -> None:
        self._max_keys = max_keys
        self._present_s = present_s
        self._absent_s = absent_s
        self._present: dict[CacheKey, float] = {}  # until when the answer holds; the oldest answer first
        self._absent: dict[CacheKey, float] = {}

    @property
    def num_present(self) -> int:
        """Keys that were there when somebody last asked."""
        return len(self._present)

    def look_up(self, key: CacheKey, now_s: float) -> bool | None:
        """None: nobody knows."""
        if self._present.get(key, now_s) > now_s:
            return True
        return False if self._absent.get(key, now_s) > now_s else None

    def found(self, key: CacheKey, now_s: float) -> tuple[bool, CacheKey | None]:
        """``key`` is there. Returns whether that is news, and the key of which nothing is known any more
        because of it."""
        self._absent.pop(key, None)
        is_new = self._present.pop(key, None) is None
        self._present[key] = now_s + self._present_s
        dropped = next(iter(self._present)) if len(self._present) > self._max_keys else None
        if dropped is not None:
            del self._present[dropped]
        return is_new, dropped

    def missed(self, key: CacheKey, now_s: float) -> bool:
        """``key`` is not there. Returns whether it was thought to be."""
        self._absent.pop(key, None)
        self._absent[key] = now_s + self._absent_s
        if len(self._absent) > self._max_keys:
            del self._absent[next(iter(self._absent))]
        return self._present.pop(key, None) is not None


class PrefixSearch:
    """How many leading keys of a sequence are there, in rounds of up to ``num_at_once`` questions.

    As long as nothing is known to be missing, the steps grow by four, so that little is asked where little
    is there; then what is uncertain is cut into equal parts. It trusts that with a block those before it are
    there too, which holds but for holes that a load finds out about.

    ``known`` answers without asking, or None. While ``questions`` is not empty, ask for these positions and
    tell ``answered``; then ``count`` is the result.
    """

    def __init__(
        self, keys: Sequence[CacheKey], known: Callable[[CacheKey], bool | None], num_at_once: int
    ) -> None:
        self._num_at_once = num_at_once
        self._low = 0  # so many are there
        self._high = len(keys)  # not more than so many
        self._has_end = False  # the one at `_high` is missing
        for position, key in enumerate(keys):
            is_there = known(key)
            if is_there is not None:
                self.answered(position, is_there)
                if not is_there:
                    break

    @property
    def count(self) -> int:
        return self._low

    def questions(self) -> list[int]:
        """Positions, ascending."""
        width = self._high - self._low
        if self._has_end:
            num = min(width, self._num_at_once)
            return [self._low + (index + 1) * width // (num + 1) for index in range(num)]
        steps: list[int] = []
        while len(steps) < self._num_at_once and (step := 4 ** len(steps) - 1) < width:
            steps.append(self._low + step)
        if self._low and len(steps) > 1:
            steps[-1] = self._high - 1  # something is there: perhaps all of it
        return steps

    def answered(self, position: int, is_there: bool) -> None:
        if is_there:
            self._low = max(self._low, min(position + 1, self._high))
        elif position < self._high:
            self._high = max(self._low, position)
            self._has_end = True
