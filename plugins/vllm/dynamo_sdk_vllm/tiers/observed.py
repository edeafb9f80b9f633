"""``ObservedStore``: a store whose keys somebody else follows too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStore,
    KVStoreFailure,
    KVStoreListener,
    KVStoreStatistics,
)

OnChange = Callable[[bool, Sequence[CacheKey]], None]
"""Whether these keys can be found from now on, or no longer; and which."""


class ObservedStore(KVStore):
    """Passes everything on."""

    def __init__(self, store: KVStore, on_change: OnChange) -> None:
        self._store = store
        self._on_change = on_change
        store.listen(_Both(KVStoreListener(), on_change))

    def listen(self, listener: KVStoreListener) -> None:
        self._store.listen(_Both(listener, self._on_change))

    async def start(self) -> None:
        await self._store.start()

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        return await self._store.put(key, block)

    async def get(self, key: CacheKey) -> bytes | None:
        return await self._store.get(key)

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return await self._store.contains(keys)

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await self._store.delete(keys)

    def statistics(self) -> KVStoreStatistics:
        return self._store.statistics()

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        return await self._store.put_many(offers)

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        return await self._store.get_into(keys, into)

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        return await self._store.count_prefix(keys)

    async def close(self) -> None:
        await self._store.close()


class _Both(KVStoreListener):
    def __init__(self, listener: KVStoreListener, on_change: OnChange) -> None:
        self._listener = listener
        self._on_change = on_change

    def stored(self, keys: Sequence[CacheKey]) -> None:
        self._on_change(True, keys)
        self._listener.stored(keys)

    def removed(self, keys: Sequence[CacheKey]) -> None:
        self._on_change(False, keys)
        self._listener.removed(keys)

    def moved(self, num_bytes: int, elapsed_s: float, *, is_load: bool) -> None:
        self._listener.moved(num_bytes, elapsed_s, is_load=is_load)

    def failed(self, failure: KVStoreFailure) -> None:
        self._listener.failed(failure)
