"""What to copy when two engines cut the same KV differently: other block sizes, other shares of the heads,
another order of axes. Pure arithmetic; dtype and model stay.

A block is a box ``[layer, key or value, head, token]`` of vectors, in whatever order of axes. Of two block
sizes one must be a multiple of the other; the smaller one is the *unit*. A unit of the source goes into a
unit of the target as one strided copy, the same for all units but for where it starts::

    source, 16 tokens a block   | u0 | u1 | u2 | u3 | u4 |
    target, 32 tokens a block   | u0   u1 | u2   u3 | u4   .. |      the last may stay partly unused
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dynamo_sdk.types import KVAxis, KVLayout, KVShape


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedCopy:
    """Runs of ``run_bytes`` over a box of ``shape``; strides in bytes, relative to the start of a unit."""

    shape: tuple[int, ...]
    source_strides: tuple[int, ...]
    target_strides: tuple[int, ...]
    run_bytes: int


class UnitCopy(NamedTuple):
    """Unit ``source_unit`` of the sequence's block ``source_index`` goes into unit ``own_unit`` of own block
    ``own_id``."""

    source_index: int
    source_unit: int
    own_id: int
    own_unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reslice:
    """``source_start`` and ``target_start``: where the first head of both lies in a block; a unit lies
    ``*_unit_bytes`` behind the one before it. ``fills_target``: every head of the target is there."""

    copy: StridedCopy
    source_start: int
    target_start: int
    source_unit_bytes: int
    target_unit_bytes: int
    source_units: int
    target_units: int
    fills_target: bool

    def units(self, pairs: Iterable[tuple[int, int]], num_source_blocks: int) -> list[UnitCopy]:
        """``pairs``: (index of an own block in the sequence, its id). Ordered by source. Tokens for which
        the source has no block are left out. Raises ``ValueError`` for a block that would stay empty."""
        copies = []
        num_units = num_source_blocks * self.source_units
        for index, own_id in pairs:
            first = index * self.target_units
            if not 0 <= first < num_units:
                raise ValueError(f"block {index} begins behind the {num_source_blocks} blocks of the ticket")
            for unit in range(first, min(first + self.target_units, num_units)):
                source_index, source_unit = divmod(unit, self.source_units)
                copies.append(UnitCopy(source_index, source_unit, own_id, unit - first))
        copies.sort()
        return copies

    def source_offset(self, unit: int) -> int:
        """Bytes from the start of a source block."""
        return self.source_start + unit * self.source_unit_bytes

    def target_offset(self, unit: int) -> int:
        """Bytes from the start of a target block."""
        return self.target_start + unit * self.target_unit_bytes


def why_not(source: KVLayout, target: KVLayout) -> str | None:
    """Why blocks of ``source`` can never become blocks of ``target``; None when they can."""
    theirs, ours = source.shape, target.shape
    if theirs is None or ours is None:
        return "the layouts differ, and an engine does not say how its blocks are built"
    for name, one, other in (
        ("models", theirs.model, ours.model),
        ("dtypes", theirs.dtype, ours.dtype),
        ("numbers of layers", theirs.num_layers, ours.num_layers),
        ("numbers of KV heads", theirs.num_heads, ours.num_heads),
        ("head sizes in bytes", theirs.head_bytes, ours.head_bytes),
    ):
        if one != other:
            return f"the {name} differ: {one} and {other}"
    small, large = sorted((source.block_size, target.block_size))
    if large % small:
        return f"block size {large} is no multiple of {small}"
    for layout, shape in ((source, theirs), (target, ours)):
        if layout.block_bytes != shape.block_bytes(layout.block_size):
            return f"a block of {layout.block_bytes} bytes is not what its shape says"
    if theirs.end_head <= ours.first_head or ours.end_head <= theirs.first_head:
        return f"heads {_heads(theirs)} are on one side, heads {_heads(ours)} on the other"
    return None


def plan_reslice(source: KVLayout, target: KVLayout) -> Reslice:
    """Raises ``ValueError`` with the reason of ``why_not``."""
    reason = why_not(source, target)
    if reason is not None:
        raise ValueError(reason)
    theirs, ours = source.shape, target.shape
    assert theirs is not None
    assert ours is not None
    unit_size = min(source.block_size, target.block_size)
    first_head, end_head = max(theirs.first_head, ours.first_head), min(theirs.end_head, ours.end_head)
    lengths: dict[KVAxis, int] = {
        "layer": ours.num_layers,
        "kv": 2,
        "head": end_head - first_head,
        "token": unit_size,
    }
    from_strides, to_strides = theirs.strides(source.block_size), ours.strides(target.block_size)
    return Reslice(
        copy=_merged(
            [(lengths[axis], from_strides[axis], to_strides[axis]) for axis in ours.order], ours.head_bytes
        ),
        source_start=(first_head - theirs.first_head) * from_strides["head"],
        target_start=(first_head - ours.first_head) * to_strides["head"],
        source_unit_bytes=unit_size * from_strides["token"],
        target_unit_bytes=unit_size * to_strides["token"],
        source_units=source.block_size // unit_size,
        target_units=target.block_size // unit_size,
        fills_target=(first_head, end_head) == (ours.first_head, ours.end_head),
    )


def missing_heads(target: KVShape, sources: Iterable[KVShape]) -> list[int]:
    """The heads of ``target`` that none of ``sources``, the ranks of a prefill worker, holds."""
    held = {head for source in sources for head in range(source.first_head, source.end_head)}
    return [head for head in range(target.first_head, target.end_head) if head not in held]


def _merged(axes: Sequence[tuple[int, int, int]], run_bytes: int) -> StridedCopy:
    """Axes (length, stride there, stride here), outermost first: inner ones that continue each other on both
    sides become one."""
    left: list[tuple[int, int, int]] = []  # innermost first
    for length, there, here in reversed(axes):
        if length == 1:
            continue
        if not left and there == here == run_bytes:
            run_bytes *= length
        elif left and (there, here) == (left[-1][0] * left[-1][1], left[-1][0] * left[-1][2]):
            inner_length, inner_there, inner_here = left[-1]
            left[-1] = (inner_length * length, inner_there, inner_here)
        else:
            left.append((length, there, here))
    left.reverse()
    return StridedCopy(
        shape=tuple(length for length, _, _ in left),
        source_strides=tuple(there for _, there, _ in left),
        target_strides=tuple(here for _, _, here in left),
        run_bytes=run_bytes,
    )


def _heads(shape: KVShape) -> str:
    return f"{shape.first_head} to {shape.end_head - 1}"
