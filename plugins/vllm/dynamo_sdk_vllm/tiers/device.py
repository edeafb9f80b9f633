"""``DeviceBlocks``: which of vLLM's own blocks still hold what they held when they became full.

vLLM frees a block and uses it again without asking. What is overwritten is said with the orders of a step,
before the step begins: a copy that was made until then is whole, one that was not is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import CachedBlock, CachedPlace


class DeviceBlocks:
    """Written by vLLM's thread, read by the tiers' own; each step of either is one of the interpreter's."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._content: dict[int, CachedBlock] = {}
        self._block_of: dict[CacheKey, int] = {}

    def put(self, blocks: Iterable[tuple[CachedBlock, int]]) -> None:
        """These are full."""
        for block, block_id in blocks:
            self._content[block_id] = block
            self._block_of[block.key] = block_id

    def forget(self, block_ids: Iterable[int]) -> None:
        """Something else is about to be written there."""
        for block_id in block_ids:
            block = self._content.pop(block_id, None)
            if block is not None and self._block_of.get(block.key) == block_id:
                self._block_of.pop(block.key, None)

    def place_of(self, key: CacheKey) -> CachedPlace | None:
        block_id = self._block_of.get(key)
        block = None if block_id is None else self._content.get(block_id)
        if block_id is None or block is None or block.key != key:
            return None
        return CachedPlace(block_id, block)

    def is_unchanged(self, place: CachedPlace) -> bool:
        return self._content.get(place.block_id) is place.content
