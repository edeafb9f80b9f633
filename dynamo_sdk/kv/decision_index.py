"""``DecisionIndex``: what seats hold because we sent it there, until it is too long ago.

Two uses of one thing. Without KV events it is all there is to know (``ttl_s`` of minutes: about as long as a
cache keeps a prompt). With them it bridges the moments between a decision and the event that confirms it
(``ttl_s`` of a few seconds), so that siblings that arrive together land together.

Time is cut into generations, each an index of its own; a generation is forgotten as a whole. An entry lives
for ``ttl_s`` at least and ``1.5 * ttl_s`` at most, less when ``max_entries`` does not allow it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dynamo_sdk.interfaces.router import Overlap

from .prefix_index import PrefixIndex
from .prefix_keys import PrefixKeys

_NUM_GENERATIONS = 2
DEFAULT_MAX_ENTRIES = 8_000_000


class DecisionIndex:
    """Seats as in ``PrefixIndex``; ``now_s`` is monotonic seconds."""

    def __init__(self, ttl_s: float, *, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        self.ttl_s = ttl_s
        self.max_entries = max_entries
        self._span_s = ttl_s / _NUM_GENERATIONS
        self._generations: deque[tuple[float, PrefixIndex]] = deque()  # when it began; the oldest first

    def record(self, seat: int, keys: PrefixKeys, now_s: float) -> None:
        """A prompt with these keys goes to ``seat``. One that alone is too large is not recorded."""
        if not len(keys):
            return
        self._forget(now_s)
        if not self._generations or now_s >= self._generations[-1][0] + self._span_s:
            self._begin(now_s)
        if not self._generations[-1][1].store_prefix(seat, keys):
            self._begin(now_s)
            self._generations[-1][1].store_prefix(seat, keys)

    def match(self, keys: Sequence[int], now_s: float) -> dict[int, Overlap]:
        """The seats to which leading blocks of the prompt with these keys went, counted as device blocks."""
        self._forget(now_s)
        found: dict[int, Overlap] = {}
        for _, index in self._generations:
            found = deepest(found, index.match(keys))
        return found

    def drop(self, seat: int) -> None:
        """``seat`` is gone, or has lost what it held."""
        for _, index in self._generations:
            index.drop(seat)

    @property
    def num_entries(self) -> int:
        return sum(index.statistics().num_entries for _, index in self._generations)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(entries)."""
        begins = [begin for begin, _ in self._generations]
        assert begins == sorted(begins)
        for _, index in self._generations:
            index.check_integrity()
        assert self.num_entries <= self.max_entries

    def _begin(self, now_s: float) -> None:
        """A new generation; older ones go when there are more than time alone would have made."""
        self._generations.append((now_s, PrefixIndex(max_entries=self.max_entries // (_NUM_GENERATIONS + 1))))
        while len(self._generations) > _NUM_GENERATIONS + 1:
            self._generations.popleft()

    def _forget(self, now_s: float) -> None:
        while self._generations and now_s >= self._generations[0][0] + self._span_s + self.ttl_s:
            self._generations.popleft()


def deepest(one: dict[int, Overlap], other: dict[int, Overlap]) -> dict[int, Overlap]:
    """For each seat the larger of two overlaps, ``one`` if they are equal. May be one of the arguments."""
    if not one or not other:
        return one or other
    for seat, overlap in other.items():
        known = one.get(seat)
        if known is None or overlap.num_blocks > known.num_blocks:
            one[seat] = overlap
    return one
