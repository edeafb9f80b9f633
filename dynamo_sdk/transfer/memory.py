"""``HostBlockMemory``: blocks in host RAM that other processes of this host can map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dynamo_sdk.interfaces import BlockMemory, MemorySpan, SharedRegion
from dynamo_sdk.types import KVLayout

from .host_pages import SharedMemory
from .spans import neighbour_runs


class HostBlockMemory(BlockMemory):
    """``num_blocks`` blocks in ``SharedMemory``, zeroed. ``close`` ends the sharing."""

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        self._layout = layout
        self._num_blocks = num_blocks
        self._size_bytes = num_blocks * layout.block_bytes
        self._shared = SharedMemory("kv-blocks", self._size_bytes)
        self._blocks = np.frombuffer(self._shared.memory, np.uint8).reshape(num_blocks, layout.block_bytes)

    @property
    def layout(self) -> KVLayout:
        return self._layout

    @property
    def shared_region(self) -> SharedRegion | None:
        return self._shared.region

    @property
    def span(self) -> MemorySpan | None:
        return MemorySpan(address=self._blocks.ctypes.data, size_bytes=self._size_bytes)

    @property
    def blocks(self) -> npt.NDArray[np.uint8]:
        """The memory itself, ``[num_blocks, block_bytes]``; ``torch.from_numpy`` shares it."""
        return self._blocks

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        target = self._as_blocks(into, len(block_ids))
        for start, count in neighbour_runs(block_ids, self._num_blocks):
            # numpy copies without the GIL; assigning to a memoryview would keep it.
            np.copyto(target[start : start + count], self._run(block_ids[start], count))

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        source = self._as_blocks(data, len(block_ids))
        for start, count in neighbour_runs(block_ids, self._num_blocks):
            np.copyto(self._run(block_ids[start], count), source[start : start + count])

    def close(self) -> None:
        """Idempotent."""
        self._shared.close()

    def _run(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        if first < 0 or first + count > self._num_blocks:
            raise IndexError(f"block {first + count - 1 if first >= 0 else first} of {self._num_blocks}")
        return self._blocks[first : first + count]

    def _as_blocks(self, data: memoryview, num_blocks: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(data, dtype=np.uint8).reshape(num_blocks, self._layout.block_bytes)
