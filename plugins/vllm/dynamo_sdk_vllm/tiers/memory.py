"""``PagedMemory``: vLLM's own KV pages as blocks of bytes over all layers.

A layer's pages lie wherever its attention backend wants them. Of each block, a layer has one run of bytes or,
where keys and values are apart, two; these *planes* are copied one after the other, whatever is in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.types import KVLayout


class PagedMemory(BlockMemory):
    """``kv_caches``: by layer; layers that share their pages count once."""

    def __init__(self, kv_caches: Mapping[str, Any], *, num_blocks: int, block_size: int) -> None:
        tensors = {_place(name, tensor): tensor for name, tensor in kv_caches.items()}
        self._planes = [plane for tensor in tensors.values() for plane in planes_of(tensor, num_blocks)]
        self._device = self._planes[0].device
        self._layout = KVLayout(
            fingerprint=";".join(_shape(tensor, num_blocks) for tensor in tensors.values()),
            block_size=block_size,
            block_bytes=sum(plane.shape[1] for plane in self._planes),
        )
        is_cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._ready: torch.cuda.Event | None = None

    @property
    def layout(self) -> KVLayout:
        return self._layout

    def fence(self) -> None:
        """What vLLM has begun on the device comes before all copies from now on. On vLLM's thread."""
        if self._stream is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._ready = event

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        rows = self._rows(block_ids, into)
        with self._in_order():
            index = torch.tensor(block_ids, device=self._device)
            for plane, columns in self._columns():
                rows[:, columns].copy_(plane.index_select(0, index))

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        rows = self._rows(block_ids, data)
        with self._in_order():
            index = torch.tensor(block_ids, device=self._device)
            for plane, columns in self._columns():
                plane.index_copy_(0, index, rows[:, columns].to(self._device))

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Behind what vLLM began before, and over when this ends."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if self._ready is not None:
                self._stream.wait_event(self._ready)
            yield
            self._stream.synchronize()

    def _columns(self) -> Iterator[tuple[torch.Tensor, slice]]:
        start = 0
        for plane in self._planes:
            end = start + plane.shape[1]
            yield plane, slice(start, end)
            start = end

    def _rows(self, block_ids: Sequence[int], buffer: memoryview) -> torch.Tensor:
        expected = len(block_ids) * self._layout.block_bytes
        if buffer.nbytes != expected:
            raise ValueError(f"{len(block_ids)} blocks need {expected} bytes, the buffer has {buffer.nbytes}")
        return torch.frombuffer(buffer, dtype=torch.uint8).view(len(block_ids), -1)


def planes_of(tensor: torch.Tensor, num_blocks: int) -> list[torch.Tensor]:
    """Views of shape (num_blocks, bytes) that together are ``tensor``. Raises ``ConfigError`` for a layout in
    which a block is not a few runs of bytes."""
    shape, strides, size = tuple(tensor.shape), tensor.stride(), tensor.element_size()
    axes = _axes(tensor, num_blocks)
    num_elements = 1
    for dim in reversed(axes.inner):
        if strides[dim] != num_elements and shape[dim] > 1:
            raise ConfigError(f"no tiers for KV with the strides {strides} in the shape {shape}")
        num_elements *= shape[dim]
    storage = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    starts = [
        sum(index * strides[dim] for index, dim in zip(place, axes.outer, strict=True))
        for place in itertools.product(*(range(shape[dim]) for dim in axes.outer))
    ]
    return [
        storage.new_empty(0).set_(
            tensor.untyped_storage(),
            (tensor.storage_offset() + start) * size,
            (num_blocks, num_elements * size),
            (strides[axes.block] * size, 1),
        )
        for start in starts
    ]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Dimensions of a layer's tensor: that of the blocks, those around it, and those within a block by
    falling stride."""

    block: int
    outer: tuple[int, ...]
    inner: tuple[int, ...]


def _axes(tensor: torch.Tensor, num_blocks: int) -> _Axes:
    """Raises ``ConfigError`` where it is not clear which are the blocks."""
    shape, strides = tuple(tensor.shape), tensor.stride()
    dims = [dim for dim in range(min(2, len(shape))) if shape[dim] == num_blocks]
    if not dims or (len(dims) == 2 and num_blocks <= 2):
        raise ConfigError(f"no tiers for KV of the shape {shape}: which are the {num_blocks} blocks?")
    block = dims[0]
    within = [dim for dim in range(tensor.dim()) if strides[dim] < strides[block]]
    return _Axes(
        block=block,
        outer=tuple(dim for dim in range(tensor.dim()) if dim != block and dim not in within),
        inner=tuple(sorted(within, key=lambda dim: -strides[dim])),
    )


def _place(name: str, tensor: Any) -> tuple[int, int]:
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"no tiers for layer {name}: what it keeps is no tensor of KV pages")
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def _shape(tensor: torch.Tensor, num_blocks: int) -> str:
    """What decides which bytes of a block are where; not how many blocks there are."""
    axes = _axes(tensor, num_blocks)
    outer = [(dim, tensor.shape[dim]) for dim in axes.outer]
    inner = [(dim, tensor.shape[dim]) for dim in axes.inner]
    return f"{tensor.dtype} {axes.block} {outer} {inner}"
