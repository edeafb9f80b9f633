"""Carrying out what ``reslice`` planned: from blocks in memory into an engine's own, on a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import BlockMemory

from .reslice import Reslice, UnitCopy
from .spans import blocks_per_piece


class Slicer:
    """Writes into ``into``; ``mapped``: its blocks in place, if they can be."""

    def __init__(self, plan: Reslice, into: BlockMemory, mapped: memoryview | None) -> None:
        self._plan = plan
        self._into = into
        self._mapped = mapped
        self._size = into.layout.block_bytes

    def copy(
        self,
        source: memoryview,
        offsets: Mapping[int, int] | Sequence[int],
        copies: Sequence[UnitCopy],
        remaining_s: Callable[[], float],
    ) -> None:
        """``offsets[source_index]``: where that block begins in ``source``. ``remaining_s()`` is asked before
        each piece and raises when there is no time left. Raises ``TransferError`` for blocks that do not
        exist."""
        step = blocks_per_piece(self._plan.target_unit_bytes)
        for start in range(0, len(copies), step):
            remaining_s()
            piece = copies[start : start + step]
            try:
                if self._mapped is not None:
                    for copy in piece:
                        self._copy_unit(source, offsets, copy, self._mapped, copy.own_id * self._size)
                else:
                    self._by_way_of_a_buffer(source, offsets, piece)
            except (IndexError, TypeError, ValueError) as error:
                raise TransferError(f"a block outside of its memory was named: {error}") from error

    def _by_way_of_a_buffer(
        self, source: memoryview, offsets: Mapping[int, int] | Sequence[int], piece: Sequence[UnitCopy]
    ) -> None:
        """Whole own blocks are written, so what this piece leaves as it is has to be read first."""
        plan = self._plan
        for own_id, units in groupby(piece, lambda copy: copy.own_id):
            group = list(units)
            block = memoryview(bytearray(self._size))
            if not plan.fills_target or len(group) < plan.target_units:
                self._into.read([own_id], block)
            for copy in group:
                self._copy_unit(source, offsets, copy, block, 0)
            self._into.write([own_id], block)

    def _copy_unit(
        self,
        source: memoryview,
        offsets: Mapping[int, int] | Sequence[int],
        copy: UnitCopy,
        target: memoryview,
        start: int,
    ) -> None:
        plan = self._plan
        begin = offsets[copy.source_index] + plan.source_offset(copy.source_unit)
        theirs = _box(source, begin, plan.copy.shape, plan.copy.source_strides, plan.copy.run_bytes)
        begin = start + plan.target_offset(copy.own_unit)
        ours = _box(target, begin, plan.copy.shape, plan.copy.target_strides, plan.copy.run_bytes)
        ours[...] = theirs


def _box(
    memory: memoryview, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], run_bytes: int
) -> npt.NDArray[np.void]:
    """Runs as the elements of an array. Raises ``ValueError`` or ``TypeError`` beyond the memory's end."""
    if offset < 0:
        raise ValueError(f"offset {offset}")
    return np.ndarray(shape, dtype=f"V{run_bytes}", buffer=memory, offset=offset, strides=strides)
