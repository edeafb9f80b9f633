"""``HostBlockMemory``: blocks in host RAM that other processes of this host can map."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dynamo_sdk.interfaces import BlockMemory, MemorySpan, SharedRegion
from dynamo_sdk.types import KVLayout

from .spans import neighbour_runs


class HostBlockMemory(BlockMemory):
    """``num_blocks`` blocks in an anonymous file (``memfd``), zeroed.

    The file is sealed against resizing: a reader in another process can never be hit by SIGBUS.
    Pages are given out by the kernel as they are first written. ``close`` ends the sharing; the bytes
    live on until the last view of them is gone.
    """

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        self._layout = layout
        self._num_blocks = num_blocks
        self._size_bytes = num_blocks * layout.block_bytes
        self._fd = os.memfd_create("kv-blocks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, self._size_bytes)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        mapping = mmap.mmap(self._fd, self._size_bytes)
        self._blocks = np.frombuffer(mapping, dtype=np.uint8).reshape(num_blocks, layout.block_bytes)

    @property
    def layout(self) -> KVLayout:
        return self._layout

    @property
    def shared_region(self) -> SharedRegion | None:
        if self._fd < 0:
            return None
        return SharedRegion(pid=os.getpid(), fd=self._fd, size_bytes=self._size_bytes)

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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _run(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        if first < 0 or first + count > self._num_blocks:
            raise IndexError(f"block {first + count - 1 if first >= 0 else first} of {self._num_blocks}")
        return self._blocks[first : first + count]

    def _as_blocks(self, data: memoryview, num_blocks: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(data, dtype=np.uint8).reshape(num_blocks, self._layout.block_bytes)
