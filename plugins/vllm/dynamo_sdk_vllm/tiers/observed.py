"""Stores as vLLM's process sees them: somebody else follows their keys, and keys are sealed.

The scheduler names a block by what it is; which of its bytes are where, and which part of it this is, knows
only the process that has the pages. So a store, and whoever else reads it, is given the name combined with
a *seal* of that: a block that lies there in another layout is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

from msgspec.structs import replace

from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStore,
    KVStoreFailure,
    KVStoreListener,
    KVStoreStatistics,
    ReadsPeers,
)
from dynamo_sdk.kv.hashing import CACHE_KEY_BYTES
from dynamo_sdk.types import KVLayout, KVSource

OnChange = Callable[[bool, Sequence[CacheKey]], None]
"""Whether these keys can be found from now on, or no longer; and which."""


class Seal:
    """Of what ``layout`` makes of a block, and of the part that is process ``rank``'s. Sealing twice gives
    the key back."""

    def __init__(self, layout: KVLayout, rank: int) -> None:
        facts = f"{layout.fingerprint}|{layout.block_size}|{layout.block_bytes}|{rank}"
        self._mask = int.from_bytes(blake2b(facts.encode(), digest_size=CACHE_KEY_BYTES).digest())

    def key(self, key: CacheKey) -> CacheKey:
        return CacheKey((int.from_bytes(key) ^ self._mask).to_bytes(len(key)))

    def keys(self, keys: Sequence[CacheKey]) -> list[CacheKey]:
        return [self.key(key) for key in keys]


class ObservedStore(KVStore):
    """Passes everything on, under sealed keys."""

    def __init__(self, store: KVStore, on_change: OnChange, seal: Seal) -> None:
        self._store = store
        self._on_change = on_change
        self._seal = seal
        self.listen(KVStoreListener())

    def listen(self, listener: KVStoreListener) -> None:
        self._store.listen(_Both(listener, self._on_change, self._seal))

    async def start(self) -> None:
        await self._store.start()

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        return await self._store.put(self._seal.key(key), block)

    async def get(self, key: CacheKey) -> bytes | None:
        return await self._store.get(self._seal.key(key))

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return await self._store.contains(self._seal.keys(keys))

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await self._store.delete(self._seal.keys(keys))

    def statistics(self) -> KVStoreStatistics:
        return self._store.statistics()

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        return await self._store.put_many([self._sealed(offer) for offer in offers])

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        return await self._store.get_into(self._seal.keys(keys), into)

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        return await self._store.count_prefix(self._seal.keys(keys))

    async def close(self) -> None:
        await self._store.close()

    def _sealed(self, offer: BlockOffer) -> BlockOffer:
        parent = None if offer.parent is None else self._seal.key(offer.parent)
        return replace(offer, key=self._seal.key(offer.key), parent=parent)


class ObservedPeers(ObservedStore, ReadsPeers):
    """``peers``: the same store, as one that reads others'."""

    def __init__(self, store: KVStore, peers: ReadsPeers, on_change: OnChange, seal: Seal) -> None:
        super().__init__(store, on_change, seal)
        self._peers = peers

    def trust(self, secret: bytes | None) -> None:
        self._peers.trust(secret)

    def expect(self, keys: Sequence[CacheKey], source: KVSource) -> None:
        self._peers.expect(self._seal.keys(keys), source)


class _Both(KVStoreListener):
    def __init__(self, listener: KVStoreListener, on_change: OnChange, seal: Seal) -> None:
        self._listener = listener
        self._on_change = on_change
        self._seal = seal

    def stored(self, keys: Sequence[CacheKey]) -> None:
        own = self._seal.keys(keys)
        self._on_change(True, own)
        self._listener.stored(own)

    def removed(self, keys: Sequence[CacheKey]) -> None:
        own = self._seal.keys(keys)
        self._on_change(False, own)
        self._listener.removed(own)

    def moved(self, num_bytes: int, elapsed_s: float, *, is_load: bool) -> None:
        self._listener.moved(num_bytes, elapsed_s, is_load=is_load)

    def failed(self, failure: KVStoreFailure) -> None:
        self._listener.failed(failure)
