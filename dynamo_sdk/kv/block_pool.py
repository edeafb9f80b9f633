"""``BlockPool``: which device block is whose, and which tokens it holds.

A block is in exactly one of three places::

              allocate                       release (no key)
    FREE ────────────────> REFERENCED ─────────────────────────> FREE
                            │      ▲
          release (has key) │      │ allocate, by its key
                            ▼      │
                           EVICTABLE ── allocate, when nothing is FREE: loses its key ──> REFERENCED

``register`` gives a REFERENCED block its key once its KV is complete; from then on others find it.

Who holds a block holds all blocks before it. With that, "released last block first" makes the queue of
EVICTABLE blocks both least-recently-used and leaf-first: no block is evicted before its cached
children, so a cached chain never has a hole. ``register`` keeps this true: where two sequences computed
the same block, the second one is moved to the first one's copy, and its own goes back.

All changes of what is cached are collected as KV events; ``take_events`` hands them out in order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.types.kv_events import BlocksRemoved, BlocksStored, KVEvent

from .cached_block import CachedBlock, CachedPlace, chains, event_names, stored_event


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAllocation:
    """``block_ids``, in order; the first ``num_cached_blocks`` of them already hold their KV."""

    block_ids: tuple[int, ...]
    num_cached_blocks: int


class BlockPool:
    """Blocks ``0 .. num_blocks - 1`` of ``block_size`` tokens, with a prefix cache over them.

    ``events_have_tokens``: False spares ``BlocksStored`` its ``token_ids``.
    """

    def __init__(self, num_blocks: int, block_size: int, *, events_have_tokens: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of one token, not {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._events_have_tokens = events_have_tokens
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack; the lowest id on top
        self._evictable: OrderedDict[int, None] = OrderedDict()  # next victim first
        self._num_refs = [0] * num_blocks
        self._contents: list[CachedBlock | None] = [None] * num_blocks
        self._block_of: dict[CacheKey, int] = {}
        self._is_recording = True
        self._events: list[KVEvent] = []
        self._evicted: list[CacheKey] = []  # of a BlocksRemoved that is still growing
        self._new_blocks: list[CachedBlock] | None = None  # None = nobody wants to know

    @property
    def num_free_blocks(self) -> int:
        """Blocks that ``allocate`` can hand out now: free and evictable ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached_blocks(self) -> int:
        return len(self._block_of)

    def count_cached(self, keys: Sequence[CacheKey]) -> int:
        """The number of leading ``keys`` that are cached; takes no reference.

        O(log keys): a cached chain has no holes.
        """
        block_of = self._block_of
        return bisect_left(keys, True, key=lambda key: key not in block_of)

    def place_of(self, key: CacheKey) -> CachedPlace | None:
        """Where ``key`` is cached; takes no reference. Who copies the block without one asks
        ``is_unchanged`` afterwards, and throws the copy away if it is not."""
        block = self._block_of.get(key)
        content = None if block is None else self._contents[block]
        return None if block is None or content is None else CachedPlace(block, content)

    def is_unchanged(self, place: CachedPlace) -> bool:
        """Nobody was given the block since: all the while, it held what ``place`` says."""
        return self._contents[place.block_id] is place.content

    def allocate(
        self, num_blocks: int, keys: Sequence[CacheKey] = (), *, num_spare_blocks: int = 0
    ) -> PoolAllocation | None:
        """``num_blocks`` blocks with one reference each: the longest cached prefix of ``keys``, then new.

        None, and nothing changed, when that many do not fit now and leave ``num_spare_blocks``.
        """
        if len(keys) > num_blocks:
            raise ValueError(f"{len(keys)} keys for {num_blocks} blocks")
        evictable, num_refs = self._evictable, self._num_refs
        found = self._found(num_blocks, keys, num_spare_blocks)
        if found is None:
            return None
        for block in found:
            if not num_refs[block]:
                del evictable[block]
            num_refs[block] += 1
        new = self._take_blocks(num_blocks - len(found))
        return PoolAllocation(block_ids=(*found, *new), num_cached_blocks=len(found))

    def has_room(self, num_blocks: int, keys: Sequence[CacheKey] = (), *, num_spare_blocks: int = 0) -> bool:
        """Whether ``allocate`` would give them."""
        return self._found(num_blocks, keys, num_spare_blocks) is not None

    def _found(self, num_blocks: int, keys: Sequence[CacheKey], num_spare_blocks: int) -> list[int] | None:
        """Blocks that have the longest cached prefix of ``keys``; None when the rest does not fit."""
        block_of, num_refs = self._block_of, self._num_refs
        found = [block_of[key] for key in keys[: self.count_cached(keys)]]
        num_revived = sum(1 for block in found if not num_refs[block])
        num_new = num_blocks - len(found)
        return found if num_new + num_spare_blocks <= self.num_free_blocks - num_revived else None

    def allocate_one(self) -> int | None:
        """One new block with one reference; None when there is none now."""
        if not self._free and not self._evictable:
            return None
        return self._take_blocks(1)[0]

    def _take_blocks(self, num_blocks: int) -> list[int]:
        """Free ones first, then the next victims; that many must be there."""
        free, num_refs = self._free, self._num_refs
        num_free = min(num_blocks, len(free))
        taken = free[len(free) - num_free :]
        del free[len(free) - num_free :]
        taken.reverse()  # as if popped one by one
        for _ in range(num_blocks - num_free):
            taken.append(self._evict())
        for block in taken:
            num_refs[block] = 1
        return taken

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        content = self._contents[block]
        assert content is not None
        self._contents[block] = None
        del self._block_of[content.key]
        if self._is_recording:
            self._evicted.append(content.key)
        return block

    def register(
        self,
        block_ids: Sequence[int],
        keys: Sequence[CacheKey],
        tokens: bytes,
        *,
        after: int | None,
        lora: str | None = None,
        cache_salt: str | None = None,
        priority: int = 0,
    ) -> tuple[int, ...]:
        """Make consecutive full blocks findable; returns the blocks that their holder must use from now on.

        ``tokens`` are the packed tokens of all of them. ``after`` is the holder's block before the first
        one, None at the start of a sequence. A key that is cached elsewhere moves the holder's reference
        there. Nothing is registered after a block that has no key itself (see ``reset``).
        """
        if after is not None and self._contents[after] is None:
            return tuple(block_ids)
        parent_content = None if after is None else self._contents[after]
        parent = None if parent_content is None else parent_content.key
        block_bytes = len(tokens) // len(block_ids)
        block_of, contents, num_refs = self._block_of, self._contents, self._num_refs
        kept: list[int] = []
        stored: list[CachedBlock] = []
        for index, (block, key) in enumerate(zip(block_ids, keys, strict=True)):
            present = block_of.get(key)
            if present is None:
                if not num_refs[block] or contents[block] is not None:
                    raise _unfit(block, is_held=num_refs[block] > 0)
                own = tokens[index * block_bytes : (index + 1) * block_bytes]
                content = CachedBlock(key, parent, own, lora, cache_salt, priority)
                contents[block] = content
                block_of[key] = block
                stored.append(content)
            else:
                self._store_event(stored)
                stored = []
                if present != block:
                    if not num_refs[block] or contents[block] is not None:
                        raise _unfit(block, is_held=num_refs[block] > 0)
                    block = self._move_reference(block, present)
            kept.append(block)
            parent = key
        self._store_event(stored)
        return tuple(kept)

    def _move_reference(self, block: int, present: int) -> int:
        self.release((block,))
        if not self._num_refs[present]:
            del self._evictable[present]
        self._num_refs[present] += 1
        return present

    def release(self, block_ids: Sequence[int]) -> None:
        """Give one reference of each block back. ``block_ids`` in the order of the sequence."""
        num_refs = self._num_refs
        for block in reversed(block_ids):
            num_refs[block] -= 1
            if num_refs[block] > 0:
                continue
            if num_refs[block] < 0:
                num_refs[block] = 0
                raise ValueError(f"block {block} is released more often than it was taken")
            if self._contents[block] is None:
                self._free.append(block)
            else:
                self._evictable[block] = None

    def reset(self) -> None:
        """Forget what every block holds. Held blocks stay with their holders, but nobody finds them again."""
        if self._is_recording:
            self._evicted += reversed(self._block_of)  # each after those behind it
        self._block_of.clear()
        self._contents = [None] * self.num_blocks
        self._free.extend(self._evictable)
        self._evictable.clear()

    def record_events(self, is_wanted: bool) -> None:
        """Whether ``take_events`` gives any from now on; making them costs more than all else here."""
        self._is_recording = is_wanted
        if not is_wanted:
            self._events.clear()
            self._evicted.clear()

    def record_new_blocks(self) -> None:
        """``take_new_blocks`` gives what is cached from now on; without this, nothing."""
        if self._new_blocks is None:
            self._new_blocks = []

    def take_new_blocks(self) -> list[CachedBlock]:
        """What was cached since the last call, parents first; some of it may be gone again."""
        if not self._new_blocks:
            return []
        taken, self._new_blocks = self._new_blocks, []
        return taken

    @property
    def has_events(self) -> bool:
        """``take_events`` would give some."""
        return bool(self._events or self._evicted)

    def take_events(self) -> tuple[KVEvent, ...]:
        """What changed in the cache since the last call, in order."""
        self._flush_evicted()
        events = tuple(self._events)
        self._events.clear()
        return events

    def snapshot(self) -> tuple[KVEvent, ...]:
        """Events that build the present cache from nothing, each parent before its children."""
        contents = [content for content in self._contents if content is not None]
        return tuple([self._stored(chain) for chain in chains(contents)])

    def _store_event(self, contents: list[CachedBlock]) -> None:
        if contents and self._new_blocks is not None:
            self._new_blocks += contents
        if contents and self._is_recording:
            self._flush_evicted()
            self._events.append(self._stored(contents))

    def _stored(self, contents: Sequence[CachedBlock]) -> BlocksStored:
        return stored_event(contents, self.block_size, has_tokens=self._events_have_tokens)

    def _flush_evicted(self) -> None:
        if self._evicted:
            self._events.append(BlocksRemoved(block_hashes=event_names(self._evicted)))
            self._evicted.clear()

    def num_references(self, block: int) -> int:
        """How many holders ``block`` has."""
        return self._num_refs[block]

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. O(blocks)."""
        free, evictable = set(self._free), set(self._evictable)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & evictable, "a block is free and evictable"
        for block in range(self.num_blocks):
            is_held, content = self._num_refs[block] > 0, self._contents[block]
            assert self._num_refs[block] >= 0
            assert is_held == (block not in free and block not in evictable), f"block {block} is lost"
            assert (block in evictable) == (not is_held and content is not None)
            if content is not None:
                assert self._block_of[content.key] == block, f"block {block} cannot be found by its key"
        assert len(self._block_of) == sum(content is not None for content in self._contents)
        place = {block: index for index, block in enumerate(self._evictable)}
        for block in self._block_of.values():
            content = self._contents[block]
            assert content is not None
            if content.parent is None:
                continue
            parent = self._block_of[content.parent]
            if parent in place:
                assert place.get(block, len(place)) < place[parent], "a parent goes before its child"


def _unfit(block: int, *, is_held: bool) -> ValueError:
    return ValueError(f"block {block} {'already holds other tokens' if is_held else 'is not held'}")
