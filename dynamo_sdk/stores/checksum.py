"""What every store that lets go of its bytes keeps with each block, and compares before it returns one."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from dynamo_sdk.interfaces import CacheKey

CHECKSUM_BYTES = 16


def block_checksum(key: CacheKey, block: memoryview) -> bytes:
    """16 bytes that tell a damaged block, and a block that belongs to another key."""
    return xxh3_128_digest(block, xxh3_64_intdigest(key))
