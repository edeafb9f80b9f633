"""A correct store on disk: one file per block, its digest in front of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from anyio.lowlevel import checkpoint

from dynamo_sdk.interfaces import CacheKey, KVStore, KVStoreStatistics

DIGEST_BYTES = 16


class FolderKVStore(KVStore):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        copy = bytes(block)
        await checkpoint()
        (self.folder / key.hex()).write_bytes(self._digest(key, copy) + copy)
        return True

    async def get(self, key: CacheKey) -> bytes | None:
        await checkpoint()
        file = self.folder / key.hex()
        if not file.exists():
            return None
        content = file.read_bytes()
        block = content[DIGEST_BYTES:]
        return block if content[:DIGEST_BYTES] == self._digest(key, block) else None

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        await checkpoint()
        return [(self.folder / key.hex()).exists() for key in keys]

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await checkpoint()
        for key in keys:
            (self.folder / key.hex()).unlink(missing_ok=True)

    def statistics(self) -> KVStoreStatistics:
        sizes = [file.stat().st_size for file in self.folder.iterdir()]
        return KVStoreStatistics(num_blocks=len(sizes), used_bytes=sum(sizes))

    def _digest(self, key: CacheKey, block: bytes) -> bytes:
        return hashlib.blake2b(key + block, digest_size=DIGEST_BYTES).digest()
