"""Checksums of blocks where they lie: xxh3, 128 bits, as the disk store keeps them. On a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xxhash import xxh3_128_digest

from dynamo_sdk.interfaces import BlockMemory

from .stream import blocks_in_pieces


def block_checksums(
    memory: BlockMemory,
    mapped: memoryview | None,
    block_ids: Sequence[int],
    remaining_s: Callable[[], float],
) -> list[bytes]:
    """16 bytes a block. ``mapped``: ``memory`` in place, if it can be. ``remaining_s()`` is asked before each
    piece and raises when there is no time left."""
    size = memory.layout.block_bytes
    checksums: list[bytes] = []
    for ids, buffers in blocks_in_pieces(memory, mapped, block_ids):
        remaining_s()
        if mapped is None:
            memory.read(ids, buffers[0])
        checksums += [
            xxh3_128_digest(buffer[start : start + size])
            for buffer in buffers
            for start in range(0, len(buffer), size)
        ]
    return checksums
