"""The paged KV cache: one tensor of blocks, and the same memory as bytes for hand-over.

Layout, outermost first::

    [num_blocks, num_layers, 2 (key, value), num_kv_heads, block_size, head_dim]

A block is one contiguous run of bytes over all layers, so that a hand-over copies whole blocks and knows
nothing of layers. Heads lie outside tokens, so that the gathered blocks of a sequence already are the
``[num_kv_heads, tokens, head_dim]`` that attention wants.

On the CPU the tensor lies in shared memory: other processes of the host map it and read blocks without a
copy through us. With ``is_populated`` all of it is there from the start, in large pages; else it comes with
its first use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dynamo_sdk.interfaces import BlockMemory, MemorySpan, SharedRegion
from dynamo_sdk.transfer.host_pages import SharedMemory
from dynamo_sdk.types import KVLayout, KVShape


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGeometry:
    """The shape of one token's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def block_bytes(self, block_size: int) -> int:
        return self.num_layers * 2 * self.num_kv_heads * block_size * self.head_dim * self.dtype.itemsize


class PagedKVCache(BlockMemory):
    """``num_blocks`` blocks on ``device``; freshly zeroed.

    ``block_rows[layer]`` and ``token_rows[layer]`` view the same memory as rows, one per (block, key or
    value, head) and one per (block, key or value, head, token). Row numbers are the same for all layers,
    because the views of later layers start later: a step computes its row numbers once.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        *,
        block_size: int,
        num_blocks: int,
        device: torch.device,
        model_digest: str,
        is_populated: bool = False,
    ) -> None:
        self.geometry = geometry
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.device = device
        dtype = str(geometry.dtype).removeprefix("torch.")
        self._layout = KVLayout(
            fingerprint=f"{model_digest}/{dtype}/layers{geometry.num_layers}"
            f"/heads{geometry.num_kv_heads}x{geometry.head_dim}/block-layer-kv-head-token",
            block_size=block_size,
            block_bytes=geometry.block_bytes(block_size),
            shape=KVShape(
                model=model_digest,
                dtype=dtype,
                num_layers=geometry.num_layers,
                num_heads=geometry.num_kv_heads,
                num_own_heads=geometry.num_kv_heads,
                head_bytes=geometry.head_dim * geometry.dtype.itemsize,
                order=("layer", "kv", "head", "token"),
            ),
        )
        size_bytes = num_blocks * self._layout.block_bytes
        self._shared: SharedMemory | None = None
        if device.type == "cpu" and hasattr(os, "memfd_create"):
            self._shared = SharedMemory("dynamo-sdk-kv", size_bytes, is_populated=is_populated)
            self._bytes = torch.frombuffer(self._shared.memory, dtype=torch.uint8)
        else:
            self._bytes = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
        self._blocks = self._bytes.view(num_blocks, self._layout.block_bytes)
        heads, size, layers = geometry.num_kv_heads, geometry.head_dim, range(geometry.num_layers)
        elements = self._bytes.view(geometry.dtype)
        block_rows = elements.view(-1, block_size * size)
        token_rows = elements.view(-1, size)
        self.rows_per_block = (
            geometry.num_layers * 2 * heads
        )  # in `block_rows`; times block_size in `token_rows`
        self.block_rows = [block_rows[layer * 2 * heads :] for layer in layers]
        self._gathered = block_rows[:0]
        self.token_rows = [token_rows[layer * 2 * heads * block_size :] for layer in layers]

    def gather(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """``block_rows[layer][rows]``, in memory that the next call overwrites: fresh pages for megabytes
        in each layer would cost as much as the copy."""
        if len(self._gathered) < len(rows):
            self._gathered = self.block_rows[layer].new_empty(len(rows), self.block_rows[layer].shape[1])
        return torch.index_select(self.block_rows[layer], 0, rows, out=self._gathered[: len(rows)])

    @property
    def layout(self) -> KVLayout:
        return self._layout

    @property
    def shared_region(self) -> SharedRegion | None:
        return self._shared.region if self._shared is not None else None

    @property
    def span(self) -> MemorySpan | None:
        return MemorySpan(
            address=self._bytes.data_ptr(),
            size_bytes=self._bytes.numel(),
            gpu=self.device.index or 0 if self.device.type == "cuda" else None,
        )

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        target = self._as_blocks(block_ids, into)
        if self.device.type == "cpu":
            blocks = self._blocks.numpy()
            for row, block_id in enumerate(block_ids):
                target[row] = blocks[block_id]  # a plain copy, without the interpreter's lock
        elif block_ids:
            target[...] = self._blocks[list(block_ids)].cpu().numpy()

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        source = self._as_blocks(block_ids, data)
        if self.device.type == "cpu":
            blocks = self._blocks.numpy()
            for row, block_id in enumerate(block_ids):
                blocks[block_id] = source[row]
        elif block_ids:
            self._blocks[list(block_ids)] = torch.from_numpy(source.copy()).to(self.device)
            torch.cuda.synchronize(self.device)  # the caller may reuse `data`, and announce the blocks

    def _as_blocks(self, block_ids: Sequence[int], buffer: memoryview) -> npt.NDArray[np.uint8]:
        expected = len(block_ids) * self._layout.block_bytes
        if buffer.nbytes != expected:
            raise ValueError(f"{len(block_ids)} blocks need {expected} bytes, the buffer has {buffer.nbytes}")
        if any(not 0 <= block_id < self.num_blocks for block_id in block_ids):
            raise ValueError(f"block ids lie in 0..{self.num_blocks - 1}, got {tuple(block_ids)}")
        return np.frombuffer(buffer, dtype=np.uint8).reshape(len(block_ids), self._layout.block_bytes)

    def close(self) -> None:
        """Nobody else can map the memory any more; it goes with the last tensor. Idempotent."""
        if self._shared is not None:
            self._shared.close()
