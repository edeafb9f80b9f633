"""Which block of a full tier goes next. Each policy is an object that is told what happens to the keys.

=================  =====================================================================
policy             the victim
=================  =====================================================================
``Lru``            the least recently used block
``Lfu``            of the 16 least recently used ones, the one asked for least often
``ByPriority``     of the lowest priority that is there, the least recently used one
``LeafFirst``      of the blocks without a kept successor, the least recently used one
=================  =====================================================================

``LeafFirst`` is for chains: a block whose predecessor is gone can no longer be found by a prefix, so
taking the ends first wastes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Container
from heapq import heapify, heappop, heappush
from itertools import islice

from dynamo_sdk.interfaces.kv_store import CacheKey

from .frequency_sketch import FrequencySketch

NUM_LFU_CANDIDATES = 16


class EvictionPolicy(ABC):
    """``added`` and ``removed`` come once per stay; ``used`` only in between, for a read or another offer."""

    @abstractmethod
    def added(self, key: CacheKey, *, parent: CacheKey | None, priority: int) -> None: ...

    @abstractmethod
    def used(self, key: CacheKey) -> None: ...

    @abstractmethod
    def removed(self, key: CacheKey) -> None: ...

    @abstractmethod
    def victim(self, spared: Container[CacheKey]) -> CacheKey | None:
        """The key to evict next, none of ``spared``; None when nothing may go now. Forgets nothing: the
        caller says ``removed`` when it has done so."""


class Lru(EvictionPolicy):
    def __init__(self) -> None:
        self._keys: OrderedDict[CacheKey, None] = OrderedDict()  # next victim first

    def added(self, key: CacheKey, *, parent: CacheKey | None, priority: int) -> None:
        self._keys[key] = None

    def used(self, key: CacheKey) -> None:
        self._keys.move_to_end(key)

    def removed(self, key: CacheKey) -> None:
        del self._keys[key]

    def victim(self, spared: Container[CacheKey]) -> CacheKey | None:
        for key in self._keys:
            if key not in spared:
                return key
        return None


class Lfu(Lru):
    """``capacity``: how many blocks the tier holds, for the size of the sketch."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._sketch = FrequencySketch(capacity)

    def added(self, key: CacheKey, *, parent: CacheKey | None, priority: int) -> None:
        super().added(key, parent=parent, priority=priority)
        self._sketch.increment(key)

    def used(self, key: CacheKey) -> None:
        super().used(key)
        self._sketch.increment(key)

    def victim(self, spared: Container[CacheKey]) -> CacheKey | None:
        oldest = islice((key for key in self._keys if key not in spared), NUM_LFU_CANDIDATES)
        return min(oldest, key=self._sketch.estimate, default=None)


class ByPriority(EvictionPolicy):
    def __init__(self) -> None:
        self._priority_of: dict[CacheKey, int] = {}
        self._levels: dict[int, Lru] = {}

    def added(self, key: CacheKey, *, parent: CacheKey | None, priority: int) -> None:
        self._priority_of[key] = priority
        self._levels.setdefault(priority, Lru()).added(key, parent=parent, priority=priority)

    def used(self, key: CacheKey) -> None:
        self._levels[self._priority_of[key]].used(key)

    def removed(self, key: CacheKey) -> None:
        self._levels[self._priority_of.pop(key)].removed(key)

    def victim(self, spared: Container[CacheKey]) -> CacheKey | None:
        for priority in sorted(self._levels):
            key = self._levels[priority].victim(spared)
            if key is not None:
                return key
        return None


class LeafFirst(EvictionPolicy):
    """A heap of leaves by their last use. Entries are not taken out when they go stale; they are dropped
    when they come up, and all at once when they are the majority."""

    def __init__(self) -> None:
        self._parent: dict[CacheKey, CacheKey | None] = {}
        self._num_children: dict[CacheKey, int] = {}  # of kept or awaited parents; never 0
        self._used_at: dict[CacheKey, int] = {}
        self._tick = 0
        self._leaves: list[tuple[int, CacheKey]] = []

    def added(self, key: CacheKey, *, parent: CacheKey | None, priority: int) -> None:
        self._parent[key] = parent
        if parent is not None:
            self._num_children[parent] = self._num_children.get(parent, 0) + 1
        self.used(key)

    def used(self, key: CacheKey) -> None:
        self._tick += 1
        self._used_at[key] = self._tick
        if key not in self._num_children:
            heappush(self._leaves, (self._tick, key))
        if len(self._leaves) > 64 + 2 * len(self._parent):
            self._leaves = [entry for entry in self._leaves if self._is_leaf(entry)]
            heapify(self._leaves)

    def removed(self, key: CacheKey) -> None:
        del self._used_at[key]
        parent = self._parent.pop(key)
        if parent is None:
            return
        self._num_children[parent] -= 1
        if not self._num_children[parent]:
            del self._num_children[parent]
            if parent in self._used_at:
                heappush(self._leaves, (self._used_at[parent], parent))

    def victim(self, spared: Container[CacheKey]) -> CacheKey | None:
        leaves, set_aside = self._leaves, []
        victim: CacheKey | None = None
        while leaves and victim is None:
            entry = leaves[0]
            if not self._is_leaf(entry):
                heappop(leaves)
            elif entry[1] in spared:
                set_aside.append(heappop(leaves))
            else:
                victim = entry[1]
        for entry in set_aside:
            heappush(leaves, entry)
        return victim

    def _is_leaf(self, entry: tuple[int, CacheKey]) -> bool:
        used_at, key = entry
        return self._used_at.get(key) == used_at and key not in self._num_children


def eviction_policy(name: str, num_blocks: int) -> EvictionPolicy:
    """The policy called ``lru``, ``lfu``, ``priority`` or ``leaf-first``; ``ValueError`` for others."""
    match name:
        case "lru":
            return Lru()
        case "lfu":
            return Lfu(num_blocks)
        case "priority":
            return ByPriority()
        case "leaf-first":
            return LeafFirst()
    raise ValueError(f"no eviction policy {name!r} (there are: leaf-first, lfu, lru, priority)")
