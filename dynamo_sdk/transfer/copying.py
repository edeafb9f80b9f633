"""Block bytes from mapped memory into our own, on a thread, with the GIL released while bytes move.

``remaining_s()`` gives the seconds left and raises when there are none; it is asked before each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import BlockMemory

from .spans import blocks_per_piece, neighbour_runs


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
    theirs, ours = _as_blocks(source, size), _as_blocks(mapped, size)
    for start in range(0, len(own_ids), step):
        remaining_s()
        piece = slice(start, start + step)
        for source_id, own_id in zip(source_ids[piece], own_ids[piece], strict=True):
            ours[own_id] = theirs[source_id]


def _require_inside(whose: str, memory: memoryview, block_ids: Sequence[int], block_bytes: int) -> None:
    num_blocks = len(memory) // block_bytes
    if block_ids and not 0 <= min(block_ids) <= max(block_ids) < num_blocks:
        raise TransferError(f"a block outside of {whose} memory of {num_blocks} blocks was named")


def _as_blocks(memory: memoryview, block_bytes: int) -> npt.NDArray[np.uint8]:
    num_blocks = len(memory) // block_bytes
    return np.frombuffer(memory, dtype=np.uint8, count=num_blocks * block_bytes).reshape(
        num_blocks, block_bytes
    )
