"""``KVStore``: a tier that keeps KV blocks beyond the device. Read this file to write one.

A store is a cache: it may lose anything at any time, but what it returns is what was put, or nothing.

========================  ===========================================================================
``start`` … ``close``     once each, on the event loop; ``close`` also after a failed start
``put`` ``get``           one block; what a store must have
``put_many`` ``get_into`` a run of blocks, without copies in between; worth overriding
``contains``              one answer per key; ``count_prefix``: how far a sequence goes
``statistics``            a plain call that never blocks
========================  ===========================================================================

*Concurrency.* All methods are called on one event loop, from many tasks at once. Async methods never block
the loop for longer than the copying of about a megabyte; the rest is done on threads. Buffers belong to
the store from the call to its return, also when the call is cancelled: a cancelled call returns only
once nothing touches them any more.

*Failures.* A full tier, a broken disk, a lost peer or a block whose bytes have changed is a miss (``None``,
``False``), never an exception and never wrong bytes: a request can always be computed instead. The
store tells its ``KVStoreListener`` about it. Exceptions are for misuse (``ValueError``).

Every store is checked by ``dynamo_sdk.testing.check_kv_store``, which relies on the abstract methods only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import NewType

import msgspec

CacheKey = NewType("CacheKey", bytes)
"""16 to 32 bytes; covers model, dtype, layout, LoRA, salt and every token up to the block's end."""


class KVStoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept now, and counts since the start. ``num_hits`` of ``num_lookups`` blocks asked for were
    found whole; ``num_kept`` of ``num_offers`` blocks offered were taken. ``num_pending``: reads and writes
    that are under way or wait for a thread."""

    num_blocks: int
    used_bytes: int
    capacity_bytes: int | None = None
    num_lookups: int = 0
    num_hits: int = 0
    num_offers: int = 0
    num_kept: int = 0
    num_evicted: int = 0
    num_failures: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    num_pending: int = 0


class KVStoreFailureKind(StrEnum):
    FULL = "full"
    """The medium has no room, although the store is within its capacity."""
    IO = "io"
    """The medium answered with an error."""
    CORRUPT = "corrupt"
    """Bytes are not what was put; they were dropped."""
    BUSY = "busy"
    """More is under way than the store may hold; the offer was refused."""


class KVStoreFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why blocks were not kept or not found although they should have been. ``message`` is for a log line."""

    kind: KVStoreFailureKind
    message: str
    num_blocks: int = 1


class RestoredBlock(msgspec.Struct, frozen=True, gc=False, eq=False):
    """What a store still had when it was opened. ``parent``, ``token_hash`` and ``namespace`` as they were
    offered. It may be another model's: routers are told only of what is of the reader's own ``namespace``."""

    key: CacheKey
    parent: CacheKey | None
    token_hash: int
    namespace: int = 0


class KVStoreListener:
    """Hears what happens inside a store, on the event loop; must not block. Override what is wanted.

    Every key that becomes findable is ``stored`` once, and ``removed`` once when it no longer is.
    """

    def stored(self, keys: Sequence[CacheKey]) -> None: ...

    def restored(self, blocks: Sequence[RestoredBlock]) -> None:
        """These are findable from the start on. Default: as ``stored``."""
        self.stored([block.key for block in blocks])

    def removed(self, keys: Sequence[CacheKey]) -> None: ...

    def moved(self, num_bytes: int, elapsed_s: float, *, is_load: bool) -> None:
        """One batch was read (``is_load``) or written in ``elapsed_s``, waiting for a thread included."""

    def failed(self, failure: KVStoreFailure) -> None: ...


class BlockOffer(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A block that a store may keep. ``parent``: the block before it in its sequence, for stores that evict
    the ends of sequences first. Higher ``priority`` stays longer where the policy knows priorities.
    ``token_hash``: 64 bits that name its tokens, 0 = unknown. ``namespace``: 64 bits that name the model and
    the layout that it is of, 0 = unknown. A store that survives a restart gives both back
    (``RestoredBlock``), so that routers can be told what it has."""

    key: CacheKey
    data: bytes | bytearray | memoryview
    parent: CacheKey | None = None
    priority: int = 0
    token_hash: int = 0
    namespace: int = 0


class KVStore(ABC):
    """Keeps blocks by key, within its capacity; what makes room is its own choice."""

    def listen(self, listener: KVStoreListener) -> None:
        """Tell ``listener`` what happens from now on; called before ``start``. Default: it hears nothing."""

    async def start(self) -> None:
        """Open whatever lies behind the store. Raises ``ConfigError`` when it cannot work as configured."""

    @abstractmethod
    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        """Keep a copy of ``block``; it is not read after the call returns. False = not kept (full, broken,
        not of a size that it keeps): a normal result. Putting a key again replaces or keeps the old block;
        both are equal."""

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

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        """``put`` for each, in any order; one answer per offer."""
        return [await self.put(offer.key, memoryview(offer.data)) for offer in offers]

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        """Fill ``into[i]`` with the whole block ``keys[i]``; one answer per key. Where the answer is False,
        the buffer's content is undefined. Raises ``ValueError`` when a buffer is not writable or of another
        size than its block."""
        found: list[bool] = []
        for key, buffer in zip(keys, into, strict=True):
            block = await self.get(key)
            if block is not None:
                buffer[:] = block
            found.append(block is not None)
        return found

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        """How many leading ``keys`` a ``get`` would probably find now."""
        answers = await self.contains(keys)
        return answers.index(False) if False in answers else len(answers)

    async def close(self) -> None:
        """Give everything back. Idempotent."""
