"""Host memory through which blocks go between a device and a store, taken once and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dynamo_sdk.stores.pinning import pin_for_cuda
from dynamo_sdk.transfer.host_pages import private_memory

BATCH_BYTES = 8 << 20
MAX_BATCH_BLOCKS = 512


class Staging:
    """``num_buffers`` buffers of ``batch_blocks`` blocks each (about ``BATCH_BYTES``; at least one block)."""

    def __init__(self, block_bytes: int, num_buffers: int) -> None:
        self.block_bytes = block_bytes
        self.batch_blocks = max(1, min(MAX_BATCH_BLOCKS, BATCH_BYTES // block_bytes))
        self._num_buffers = num_buffers
        self._free: asyncio.Queue[memoryview] = asyncio.Queue()
        self._unpin: list[Callable[[], None]] = []

    def open(self) -> None:
        """Take the memory; pages come with their first use, or here where CUDA pins them. Raises
        ``OSError``."""
        for _ in range(self._num_buffers):
            buffer = private_memory(self.batch_blocks * self.block_bytes)
            unpin = pin_for_cuda(buffer)
            if unpin is not None:
                self._unpin.append(unpin)
            self._free.put_nowait(buffer)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[memoryview]:
        """One buffer, when one is free."""
        buffer = await self._free.get()
        try:
            yield buffer
        finally:
            self._free.put_nowait(buffer)

    def blocks(self, buffer: memoryview, num_blocks: int) -> list[memoryview]:
        """The first blocks of ``buffer``."""
        size = self.block_bytes
        return [buffer[start : start + size] for start in range(0, num_blocks * size, size)]

    def close(self) -> None:
        """All buffers are back. Idempotent."""
        for unpin in self._unpin:
            unpin()
        self._unpin.clear()
