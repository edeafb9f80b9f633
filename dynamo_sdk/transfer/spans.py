"""Which blocks one copy can take at once: runs of neighbours, and batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PIECE_BYTES = 4 << 20
"""The most bytes moved between two looks at the clock and at cancellation (one block, if that is more)."""

MAX_BUFFERS = 1024
"""More than this the kernel takes in one call only where it is configured so."""


def blocks_per_piece(block_bytes: int) -> int:
    return max(1, PIECE_BYTES // block_bytes)


def buffers_after(buffers: Sequence[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of ``buffers`` (flat bytes) after their first ``num_bytes``."""
    for position, buffer in enumerate(buffers):
        if num_bytes < len(buffer):
            return [buffer[num_bytes:], *buffers[position + 1 :]]
        num_bytes -= len(buffer)
    return []


def neighbour_runs(block_ids: Sequence[int], max_blocks: int) -> Iterator[tuple[int, int]]:
    """Cut ``block_ids`` into runs of ids that follow each other: ``(first position, number of blocks)``,
    at most ``max_blocks`` each, in order and without gaps."""
    start = 0
    for position in range(1, len(block_ids) + 1):
        if (
            position == len(block_ids)
            or position - start == max_blocks
            or block_ids[position] != block_ids[position - 1] + 1
        ):
            yield start, position - start
            start = position


def joint_runs(
    first_ids: Sequence[int], second_ids: Sequence[int], max_blocks: int
) -> Iterator[tuple[int, int]]:
    """Cut two equally long lists of block ids into runs in which both follow each other: ``(first position,
    number of blocks)``, at most ``max_blocks`` each."""
    start, num_ids = 0, len(first_ids)
    for position in range(1, num_ids + 1):
        if (
            position == num_ids
            or position - start == max_blocks
            or first_ids[position] != first_ids[position - 1] + 1
            or second_ids[position] != second_ids[position - 1] + 1
        ):
            yield start, position - start
            start = position
