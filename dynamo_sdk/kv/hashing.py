"""Two names for one KV block: a hint for routing, and a proof for reuse.

=============  ======================================  ================================================
name           what it is                              who trusts it
=============  ======================================  ================================================
BlockHash      XXH3-64 of one block's tokens           nobody alone; the router's tree edge
RoutingHash    XXH3-64 chain over BlockHashes          the router; a collision costs one cache miss
CacheKey       BLAKE2b-128 chain over the tokens       pools and stores; a collision would be a wrong answer
=============  ======================================  ================================================

``RoutingHash`` equals NVIDIA Dynamo's sequence hash (tokens as little-endian u32, base seed 1337), so
both can read one stream of KV events. Only full blocks have names; a trailing part is ignored.

A LoRA adapter or a cache salt gives the same tokens other names. Empty means absent in both chains.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from struct import Struct
from typing import NewType, cast

from xxhash import xxh3_64_intdigest

from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.types.kv_transfer import KVLayout
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN

BlockHash = NewType("BlockHash", int)
"""64 bits of one block's tokens alone, whatever stands before it."""

RoutingHash = NewType("RoutingHash", int)
"""64 bits of a block and all before it. A hint: it decides where a request goes, never what it reads."""

ROUTING_SEED = 1337
CACHE_KEY_BYTES = 16

_CHAIN_LINK = Struct("<QQ")
_FIELD_LENGTH = Struct("<I")
_UINT64_MASK = (1 << 64) - 1


def routing_seed(*, lora: str | None = None, cache_salt: str | None = None) -> int:
    """The seed of ``block_hashes`` for this adapter and salt; one name as adapter and as salt differs."""
    seed = ROUTING_SEED
    if lora:
        seed += xxh3_64_intdigest(lora.encode(), 0)
    if cache_salt:
        seed += xxh3_64_intdigest(cache_salt.encode(), 1)
    return seed & _UINT64_MASK


def block_hashes(tokens: bytes, block_size: int, *, seed: int = ROUTING_SEED) -> list[BlockHash]:
    """One hash per full block of packed ``tokens``, each of its own tokens only."""
    size = _block_bytes(block_size)
    ends = range(size, len(tokens) + 1, size)
    return cast(list[BlockHash], [xxh3_64_intdigest(tokens[end - size : end], seed) for end in ends])


def sequence_hashes(hashes: Iterable[BlockHash], *, parent: RoutingHash | None = None) -> list[RoutingHash]:
    """Chain block hashes: one per block, covering everything up to its end. ``parent`` continues a chain."""
    chained: list[RoutingHash] = []
    pack = _CHAIN_LINK.pack
    for local in hashes:
        parent = RoutingHash(
            local if parent is None else xxh3_64_intdigest(pack(parent, local), ROUTING_SEED)
        )
        chained.append(parent)
    return chained


def routing_hashes(
    tokens: bytes, block_size: int, *, lora: str | None = None, cache_salt: str | None = None
) -> list[RoutingHash]:
    """The routing hash of each full block of packed ``tokens``."""
    seed = routing_seed(lora=lora, cache_salt=cache_salt)
    return sequence_hashes(block_hashes(tokens, block_size, seed=seed))


def cache_root(namespace: bytes, *, lora: str | None = None, cache_salt: str | None = None) -> CacheKey:
    """The parent of a sequence's first block. ``namespace`` names model, dtype and block layout."""
    digest = blake2b(digest_size=CACHE_KEY_BYTES, person=b"kv cache root")
    for field in (namespace, (lora or "").encode(), (cache_salt or "").encode()):
        digest.update(_FIELD_LENGTH.pack(len(field)))  # no two lists of fields share one encoding
        digest.update(field)
    return CacheKey(digest.digest())


def layout_namespace(layout: KVLayout) -> int:
    """64 bits that name model, dtype and block layout; not 0, which is no name."""
    named = b"%d\0%b" % (layout.block_size, layout.fingerprint.encode())
    return int.from_bytes(blake2b(named, digest_size=8, person=b"kv layout").digest(), "little") or 1


def next_cache_key(parent: CacheKey, block: bytes | memoryview) -> CacheKey:
    """The key of the block with packed tokens ``block``, which follows ``parent``."""
    return CacheKey(blake2b(b"".join((parent, block)), digest_size=CACHE_KEY_BYTES).digest())


def cache_keys(tokens: bytes, block_size: int, *, root: CacheKey) -> list[CacheKey]:
    """The cache key of each full block of packed ``tokens``."""
    keys: list[bytes] = []
    key: bytes = root
    block_bytes = _block_bytes(block_size)
    for end in range(block_bytes, len(tokens) + 1, block_bytes):  # `next_cache_key`, inlined
        key = blake2b(key + tokens[end - block_bytes : end], digest_size=CACHE_KEY_BYTES).digest()
        keys.append(key)
    return cast(list[CacheKey], keys)


def _block_bytes(block_size: int) -> int:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    return block_size * BYTES_PER_TOKEN
