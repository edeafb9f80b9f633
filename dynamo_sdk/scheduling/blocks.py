"""``SequenceBlocks``: the block tables of sequences, on top of the pool. No queues, no policy."""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.kv.block_pool import BlockPool

from .sequence import Sequence
from .step import Onboarding, SchedulerConfig


class SequenceBlocks:
    """Gives blocks to sequences and takes them back; keeps ``block_ids`` and the cached counts right."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.pool = BlockPool(
            config.num_blocks, config.block_size, events_have_tokens=config.events_have_tokens
        )
        self._block_size = config.block_size
        self._is_caching = config.enable_prefix_caching

    def allocate(self, sequence: Sequence, num_tokens: int, *, num_spare_blocks: int) -> bool:
        """Blocks for the first ``num_tokens`` tokens, cached ones where there are; False = not without
        leaving less than ``num_spare_blocks`` to others.

        The prefix cache never covers the last known token: it must be computed to sample the next one.
        """
        num_blocks, keys = -(-num_tokens // self._block_size), self._findable(sequence)
        allocation = self.pool.allocate(num_blocks, keys, num_spare_blocks=num_spare_blocks)
        if allocation is None:
            return False
        sequence.block_ids = allocation.block_ids
        sequence.is_cacheable = self._is_caching
        sequence.num_computed_tokens = allocation.num_cached_blocks * self._block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
        return True

    def prospect(self, sequence: Sequence, *, num_spare_blocks: int) -> Onboarding | None:
        """What could be loaded of a sequence that has no blocks yet; None = nothing, or it would get none."""
        num_blocks, keys = -(-sequence.num_tokens // self._block_size), self._findable(sequence)
        num_cached_blocks = self.pool.count_cached(keys)
        if num_cached_blocks == len(keys) or not self.pool.has_room(
            num_blocks, keys, num_spare_blocks=num_spare_blocks
        ):
            return None
        return Onboarding(
            request=sequence.request,
            keys=tuple(keys),
            block_ids=(),
            num_cached_blocks=num_cached_blocks,
            num_tokens=sequence.num_tokens,
        )

    def _findable(self, sequence: Sequence) -> list[CacheKey]:
        return sequence.keys[: self._num_cacheable_blocks(sequence)] if self._is_caching else []

    def num_missing_blocks(self, sequence: Sequence) -> int:
        """How many of its blocks could have been found, and were not in the cache."""
        if not sequence.is_cacheable:
            return 0
        return self._num_cacheable_blocks(sequence) - sequence.num_computed_tokens // self._block_size

    def onboarding(self, sequence: Sequence) -> Onboarding:
        """What can be loaded of a sequence that has its blocks."""
        num_blocks = self._num_cacheable_blocks(sequence)
        return Onboarding(
            request=sequence.request,
            keys=tuple(sequence.keys[:num_blocks]),
            block_ids=sequence.block_ids[:num_blocks],
            num_cached_blocks=sequence.num_computed_tokens // self._block_size,
            num_tokens=sequence.num_tokens,
        )

    def loaded(self, sequence: Sequence, num_blocks: int) -> None:
        """So many blocks after the cached ones are filled; others can find them. ``ValueError`` when there
        are not so many. Where the cache was forgotten meanwhile, what was loaded is forgotten, too."""
        if not sequence.is_cacheable:
            return
        if not 0 <= num_blocks <= self.num_missing_blocks(sequence):
            raise ValueError(f"request {sequence.request.request_id!r} misses no {num_blocks} blocks")
        first_block = sequence.num_computed_tokens // self._block_size
        sequence.num_computed_tokens += num_blocks * self._block_size
        sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
        self.register_full(sequence, first_block)

    def grow(self, sequence: Sequence) -> bool:
        """One more block; False = there is none now."""
        block = self.pool.allocate_one()
        if block is None:
            return False
        sequence.block_ids = (*sequence.block_ids, block)
        return True

    def register_full(self, sequence: Sequence, first_block: int) -> None:
        """Make the computed full blocks from ``first_block`` on findable for others."""
        end_block = sequence.num_computed_tokens // self._block_size
        if first_block == end_block or not sequence.is_cacheable:
            return
        sequence.extend_keys(end_block, self._block_size)
        block_ids = sequence.block_ids
        kept = self.pool.register(
            block_ids[first_block:end_block],
            sequence.keys[first_block:end_block],
            sequence.packed_tokens(first_block * self._block_size, end_block * self._block_size),
            after=block_ids[first_block - 1] if first_block else None,
            lora=sequence.request.lora,
            cache_salt=sequence.request.cache_salt,
            priority=-sequence.request.priority,
        )
        sequence.block_ids = (*block_ids[:first_block], *kept, *block_ids[end_block:])

    def register_last(self, sequence: Sequence) -> None:
        """The last computed block was just filled."""
        self.register_full(sequence, sequence.num_computed_tokens // self._block_size - 1)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back. What is cached stays findable until its block is needed."""
        self.pool.release(sequence.block_ids)
        sequence.block_ids, sequence.num_computed_tokens = (), 0

    def is_worth_waiting(self, sequence: Sequence, prefilling: Iterable[Sequence]) -> bool:
        """Whether an earlier sequence is computing at least half of what this one would have to compute.

        Sibling requests (``n`` choices of one prompt, a batch over one document) arrive together; one
        of them should compute what all of them need.
        """
        if not self._is_caching:
            return False
        end_block = self._num_cacheable_blocks(sequence)
        first_block = self.pool.count_cached(sequence.keys[:end_block])
        if first_block == end_block:
            return False
        next_key = sequence.keys[first_block]
        num_needed_tokens = sequence.num_tokens - first_block * self._block_size
        for leader in prefilling:
            if leader.order > sequence.order or not leader.is_cacheable:
                continue
            if len(leader.keys) > first_block and leader.keys[first_block] == next_key:
                num_common_blocks = min(_num_common_keys(leader, sequence), end_block) - first_block
                if 2 * num_common_blocks * self._block_size >= num_needed_tokens:
                    return True
        return False

    def _num_cacheable_blocks(self, sequence: Sequence) -> int:
        num_blocks = (sequence.num_tokens - 1) // self._block_size
        sequence.extend_keys(num_blocks, self._block_size)
        return num_blocks


def _num_common_keys(one: Sequence, other: Sequence) -> int:
    """Keys are chained, so they agree up to a point and nowhere after it: a binary search finds it."""
    low, high = 0, min(len(one.keys), len(other.keys))
    while low < high:
        middle = (low + high) // 2
        if one.keys[middle] == other.keys[middle]:
            low = middle + 1
        else:
            high = middle
    return low
