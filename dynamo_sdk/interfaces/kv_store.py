"""``KVStore``: a tier that keeps KV blocks beyond the device. Read this file to write one.

A store is a cache: it may lose anything at any time, but what it returns is what was put, or nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NewType

import msgspec

CacheKey = NewType("CacheKey", bytes)
"""16 bytes or more; covers model, dtype, layout, LoRA, salt and every token up to the block's end."""


class KVStoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    num_blocks: int
    used_bytes: int
    capacity_bytes: int | None = None


class KVStore(ABC):
    """Keeps blocks by key. Methods may be called from many tasks at once; each is cancellable."""

    async def start(self) -> None:
        """Open whatever lies behind the store. Raises ``ConfigError`` when it cannot work as configured."""

    @abstractmethod
    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        """Keep a copy of ``block``; it is not read after the call returns. False = not kept (full, too
        large): a normal result. Putting a key again replaces or keeps the old block; both are equal."""

    @abstractmethod
    async def get(self, key: CacheKey) -> bytes | None:
        """The whole block, or None. Never a part of it, never another block."""

    @abstractmethod
    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        """Which keys a ``get`` would probably find now."""

    @abstractmethod
    async def delete(self, keys: Sequence[CacheKey]) -> None:
        """Forget the keys; unknown ones are ignored."""

    @abstractmethod
    def statistics(self) -> KVStoreStatistics:
        """What is kept now; must not block."""

    async def close(self) -> None:
        """Give everything back. Idempotent."""
