"""What goes down to a tier, and when: filters, and a queue that is bounded.

::

    blocks that are new or were asked for ──> filters ──> OffloadQueue ── take ──> copied ── done
                                               │ no            │ full: the oldest is dropped
                                               ▼               ▼
                                             counted         counted

A block that waits here is not kept for it: who copies looks where it is by then, and skips what is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import ClassVar

from dynamo_sdk.interfaces.kv_store import CacheKey

from .cached_block import CachedBlock
from .frequency_sketch import FrequencySketch


class OffloadFilter(ABC):
    """Says of a block whether a tier should have it. ``reason``: why not, as metrics call it."""

    reason: ClassVar[str]

    @abstractmethod
    def passes(self, block: CachedBlock) -> bool: ...


class NotPresent(OffloadFilter):
    """What the tier has already need not be copied."""

    reason = "present"

    def __init__(self, present: Container[CacheKey]) -> None:
        self._present = present

    def passes(self, block: CachedBlock) -> bool:
        return block.key not in self._present


class SeenOften(OffloadFilter):
    """At least ``min_sightings`` requests asked for it of late, by ``sketch``. For media that wear out or
    cost by the write: most of what is computed once is never asked for again."""

    reason = "rare"

    def __init__(self, sketch: FrequencySketch, min_sightings: int) -> None:
        self._sketch = sketch
        self._min_sightings = min_sightings

    def passes(self, block: CachedBlock) -> bool:
        return self._sketch.estimate(block.key) >= self._min_sightings


class Important(OffloadFilter):
    """Of at least this priority; higher ones matter more."""

    reason = "priority"

    def __init__(self, min_priority: int) -> None:
        self._min_priority = min_priority

    def passes(self, block: CachedBlock) -> bool:
        return block.priority >= self._min_priority


class OffloadQueue:
    """Each block once; the first filter that says no is counted in ``num_refused``."""

    def __init__(self, filters: Sequence[OffloadFilter], max_blocks: int) -> None:
        if max_blocks < 1:
            raise ValueError(f"max_blocks must be at least 1, not {max_blocks}")
        self.max_blocks = max_blocks
        self.num_dropped = 0
        self.num_refused: Counter[str] = Counter()
        self._filters = tuple(filters)
        self._waiting: OrderedDict[CacheKey, CachedBlock] = OrderedDict()
        self._taken: set[CacheKey] = set()

    def __len__(self) -> int:
        """How many wait; what is taken does not."""
        return len(self._waiting)

    def offer(self, blocks: Iterable[CachedBlock]) -> int:
        """How many of ``blocks`` wait now that did not before."""
        num_added = 0
        for block in blocks:
            if block.key in self._waiting or block.key in self._taken:
                continue
            refusing = next((each for each in self._filters if not each.passes(block)), None)
            if refusing is not None:
                self.num_refused[refusing.reason] += 1
                continue
            if len(self._waiting) == self.max_blocks:
                self._waiting.popitem(last=False)
                self.num_dropped += 1
            self._waiting[block.key] = block
            num_added += 1
        return num_added

    def take(self, max_blocks: int) -> list[CachedBlock]:
        """The oldest, at most so many. They are not taken in again before ``done``."""
        blocks = [self._waiting.popitem(last=False)[1] for _ in range(min(max_blocks, len(self._waiting)))]
        self._taken.update(block.key for block in blocks)
        return blocks

    def done(self, blocks: Iterable[CachedBlock]) -> None:
        """Copied or not, these may be offered again."""
        self._taken.difference_update(block.key for block in blocks)

    def cancel(self, keys: Iterable[CacheKey]) -> None:
        """What waits of these need not be copied any more."""
        for key in keys:
            self._waiting.pop(key, None)
