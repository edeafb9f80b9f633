"""``AbsentStore``: in the place of a store that did not start."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.interfaces import CacheKey, KVStore, KVStoreStatistics


class AbsentStore(KVStore):
    """Has nothing and takes nothing."""

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        return False

    async def get(self, key: CacheKey) -> bytes | None:
        return None

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return [False] * len(keys)

    async def delete(self, keys: Sequence[CacheKey]) -> None: ...

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(num_blocks=0, used_bytes=0, capacity_bytes=0)
