"""Block bytes from mapped memory into our own, on a thread, with the GIL released while bytes move.

``remaining_s()`` gives the seconds left and raises when there are none; it is asked before each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import BlockMemory

from .host_copy import address_of, copy_bytes
from .spans import blocks_per_piece, joint_runs, neighbour_runs


def copy_blocks(
    source: memoryview,
    source_ids: Sequence[int],
    into: BlockMemory,
    mapped: memoryview | None,
    own_ids: Sequence[int],
    remaining_s: Callable[[], float],
) -> None:
    """Copy block ``source_ids[i]`` of ``source`` into block ``own_ids[i]``. ``mapped``: ``into`` in place,
    if it can be. Raises ``TransferError`` for blocks that do not exist."""
    size = into.layout.block_bytes
    step = blocks_per_piece(size)
    _require_inside("the prefill worker's", source, source_ids, size)
    if mapped is None:
        for start, count in neighbour_runs(source_ids, step):
            remaining_s()
            first = source_ids[start]
            into.write(own_ids[start : start + count], source[first * size : (first + count) * size])
        return
    _require_inside("our own", mapped, own_ids, size)
    theirs, ours = address_of(source), address_of(mapped)
    num_since_look = step
    for start, count in joint_runs(source_ids, own_ids, step):
        if num_since_look >= step:
            remaining_s()
            num_since_look = 0
        copy_bytes(ours + own_ids[start] * size, theirs + source_ids[start] * size, count * size)
        num_since_look += count


def _require_inside(whose: str, memory: memoryview, block_ids: Sequence[int], block_bytes: int) -> None:
    num_blocks = len(memory) // block_bytes
    if block_ids and not 0 <= min(block_ids) <= max(block_ids) < num_blocks:
        raise TransferError(f"a block outside of {whose} memory of {num_blocks} blocks was named")
