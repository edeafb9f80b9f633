"""A block that can be found by its key, and what KV events say of such blocks."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from dynamo_sdk.interfaces.kv_store import CacheKey, RestoredBlock
from dynamo_sdk.types.kv_events import BlocksStored, KVTier
from dynamo_sdk.types.tokens import unpack_tokens

from .hashing import CACHE_KEY_BYTES


class CachedBlock(msgspec.Struct, frozen=True, gc=False, eq=False):
    """What a registered block holds. ``parent`` is None for the first block of a sequence. ``priority``: the
    higher, the more worth keeping.

    There are as many as blocks and they refer to nothing but strings: the collector need not look at them.
    """

    key: CacheKey
    parent: CacheKey | None
    tokens: bytes
    lora: str | None
    cache_salt: str | None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class CachedPlace:
    """Where a cached block lay when somebody asked, and what was in it."""

    block_id: int
    content: CachedBlock


class CachesBlocks(Protocol):
    """A device's blocks, to those who copy from it without a reference: see ``BlockPool``."""

    @property
    def num_blocks(self) -> int: ...

    def place_of(self, key: CacheKey) -> CachedPlace | None: ...

    def is_unchanged(self, place: CachedPlace) -> bool: ...


B = TypeVar("B", CachedBlock, CachedBlock | RestoredBlock)


def chains(blocks: Iterable[B]) -> list[list[B]]:
    """The blocks, cut into runs of consecutive ones where one has not exactly one successor; parents first.
    A run whose first block has its parent elsewhere begins a tree of its own."""
    by_key = {block.key: block for block in blocks}
    children: dict[CacheKey, list[B]] = {}
    found: list[list[B]] = []
    for block in by_key.values():
        if block.parent is None or block.parent not in by_key:
            found.append([block])
        else:
            children.setdefault(block.parent, []).append(block)
    for chain in found:  # grows while it is walked
        while len(following := children.get(chain[-1].key, ())) == 1:
            chain.extend(following)
        found.extend([block] for block in following)
    return found


def stored_event(
    blocks: Sequence[CachedBlock],
    block_size: int,
    *,
    tier: KVTier = KVTier.DEVICE,
    has_tokens: bool = True,
) -> BlocksStored:
    """``blocks`` follow each other and are of one sequence."""
    first = blocks[0]
    tokens = b"".join([block.tokens for block in blocks]) if has_tokens else b""
    return BlocksStored(
        block_hashes=event_names([block.key for block in blocks]),
        parent_hash=None if first.parent is None else event_names((first.parent,))[0],
        token_ids=tuple(unpack_tokens(tokens)),
        block_size=block_size,
        tier=tier,
        lora=first.lora,
        cache_salt=first.cache_salt,
    )


def restored_event(blocks: Sequence[RestoredBlock], block_size: int, *, tier: KVTier) -> BlocksStored:
    """The same for blocks of which only hashes are known."""
    parent = blocks[0].parent
    return BlocksStored(
        block_hashes=event_names([block.key for block in blocks]),
        parent_hash=None if parent is None else event_names((parent,))[0],
        token_ids=(),
        block_size=block_size,
        tier=tier,
        token_hashes=tuple([block.token_hash for block in blocks]),
    )


def event_names(keys: Sequence[CacheKey]) -> tuple[int, ...]:
    """The first eight bytes of each key, little-endian."""
    words = array("Q", b"".join(keys))
    if sys.byteorder == "big":
        words.byteswap()
    return tuple(words[:: CACHE_KEY_BYTES // words.itemsize])
