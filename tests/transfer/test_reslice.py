"""Re-slicing against a naive model: a sequence's KV as one array, cut by hand into blocks of each side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.transfer.reslice import missing_heads, plan_reslice, why_not
from dynamo_sdk.transfer.slicing import Slicer
from dynamo_sdk.types import KVLayout, KVShape

AXES = ("layer", "kv", "head", "token")


def layout(shape: KVShape, block_size: int) -> KVLayout:
    return KVLayout(
        fingerprint=f"{shape}", block_size=block_size, block_bytes=shape.block_bytes(block_size), shape=shape
    )


def shape(*, heads=(0, 4), num_heads=4, order=AXES, **changes) -> KVShape:
    fields = {"model": "m", "dtype": "u8", "num_layers": 2, "head_bytes": 3} | changes
    return KVShape(
        num_heads=num_heads, first_head=heads[0], num_own_heads=heads[1] - heads[0], order=order, **fields
    )


class ArrayMemory(BlockMemory):
    def __init__(self, its_layout: KVLayout, num_blocks: int) -> None:
        self._layout = its_layout
        self.blocks = np.full((num_blocks, its_layout.block_bytes), 255, dtype=np.uint8)

    @property
    def layout(self) -> KVLayout:
        return self._layout

    def read(self, block_ids, into) -> None:
        np.frombuffer(into, np.uint8).reshape(len(block_ids), -1)[:] = self.blocks[list(block_ids)]

    def write(self, block_ids, data) -> None:
        self.blocks[list(block_ids)] = np.frombuffer(data, np.uint8).reshape(len(block_ids), -1)


def naive_blocks(kv: np.ndarray, side: KVLayout, num_blocks: int, background: np.ndarray) -> np.ndarray:
    """``kv[layer, kv, head, token, byte]`` of the whole model, in the blocks of one side, one by one."""
    its = side.shape
    blocks = background.copy()
    lengths = {"layer": its.num_layers, "kv": 2, "head": its.num_own_heads, "token": side.block_size}
    view = blocks.reshape(num_blocks, *(lengths[axis] for axis in its.order), its.head_bytes)
    for token in range(kv.shape[3]):
        block, slot = divmod(token, side.block_size)
        if block >= num_blocks:
            break
        for layer in range(its.num_layers):
            for which in range(2):
                for head in range(its.num_own_heads):
                    at = {"layer": layer, "kv": which, "head": head, "token": slot}
                    place = (block, *(at[axis] for axis in its.order))
                    view[place] = kv[layer, which, its.first_head + head, token]
    return blocks


@st.composite
def cases(draw):
    unit = draw(st.integers(1, 3))
    sizes = (unit, unit * draw(st.integers(1, 3)))
    source_size, target_size = draw(st.permutations(sizes))
    num_heads = draw(st.integers(1, 5))

    def share():
        first = draw(st.integers(0, num_heads - 1))
        return first, draw(st.integers(first + 1, num_heads))

    common = {
        "num_heads": num_heads,
        "num_layers": draw(st.integers(1, 3)),
        "head_bytes": draw(st.integers(1, 5)),
    }
    theirs = shape(heads=share(), order=tuple(draw(st.permutations(AXES))), **common)
    ours = shape(heads=share(), order=tuple(draw(st.permutations(AXES))), **common)
    return layout(theirs, source_size), layout(ours, target_size), draw(st.integers(1, 7))


@settings(max_examples=150)
@given(cases(), st.booleans(), st.data())
def test_what_arrives_is_what_a_naive_copy_gives(case, is_mapped, data) -> None:
    source, target, num_source = case
    reason = why_not(source, target)
    if reason is not None:
        assert "heads" in reason
        assert not set(range(source.shape.first_head, source.shape.end_head)) & set(
            range(target.shape.first_head, target.shape.end_head)
        )
        return
    plan = plan_reslice(source, target)
    rng = np.random.default_rng(7)
    num_tokens = num_source * source.block_size
    its = source.shape
    kv = rng.integers(0, 255, (its.num_layers, 2, its.num_heads, num_tokens, its.head_bytes), dtype=np.uint8)
    held = naive_blocks(kv, source, num_source, np.zeros((num_source, source.block_bytes), np.uint8))
    num_target = -(-num_tokens // target.block_size)
    first = data.draw(st.integers(0, num_target - 1))  # those before are cached
    ids = data.draw(st.permutations(range(num_target)))
    own = ArrayMemory(target, num_target)
    pairs = list(enumerate(ids))[first:]
    copies = plan.units(pairs, num_source)
    mapped = memoryview(own.blocks.reshape(-1)) if is_mapped else None
    offsets = [index * source.block_bytes for index in range(num_source)]
    Slicer(plan, own, mapped).copy(memoryview(held.reshape(-1)), offsets, copies, lambda: 1.0)

    # Heads and tokens that the source lacks stay as they were.
    partial = kv.copy()
    partial[:, :, : its.first_head] = 255
    partial[:, :, its.end_head :] = 255
    expected = naive_blocks(
        partial, target, num_target, np.full((num_target, target.block_bytes), 255, np.uint8)
    )
    for index, own_id in enumerate(ids):
        row = expected[index] if index >= first else np.full(target.block_bytes, 255, np.uint8)
        assert (own.blocks[own_id] == row).all()
    assert plan.fills_target == (not missing_heads(target.shape, [source.shape]))


def test_ranks_together_fill_a_block() -> None:
    target = layout(shape(heads=(0, 4)), 4)
    ranks = [layout(shape(heads=(first, first + 2)), 2) for first in (0, 2)]
    kv = np.random.default_rng(1).integers(0, 255, (2, 2, 4, 8, 3), dtype=np.uint8)
    own = ArrayMemory(target, 2)
    for rank in ranks:
        held = naive_blocks(kv, rank, 4, np.zeros((4, rank.block_bytes), np.uint8))
        plan = plan_reslice(rank, target)
        assert not plan.fills_target
        copies = plan.units([(0, 0), (1, 1)], 4)
        offsets = [index * rank.block_bytes for index in range(4)]
        Slicer(plan, own, None).copy(memoryview(held.reshape(-1)), offsets, copies, lambda: 1.0)
    assert (own.blocks == naive_blocks(kv, target, 2, np.zeros((2, target.block_bytes), np.uint8))).all()
    assert missing_heads(target.shape, [rank.shape for rank in ranks]) == []
    assert missing_heads(target.shape, [ranks[0].shape]) == [2, 3]


def test_equal_builds_move_in_one_run() -> None:
    """Where the axes allow it, nothing is cut finer than it must be."""
    whole = layout(shape(), 4)
    assert plan_reslice(whole, whole).copy.run_bytes == whole.block_bytes
    tokens_outside = layout(shape(order=("token", "layer", "kv", "head")), 4)
    larger = layout(shape(order=("token", "layer", "kv", "head")), 8)
    plan = plan_reslice(tokens_outside, larger)
    assert (plan.copy.shape, plan.copy.run_bytes) == ((), tokens_outside.block_bytes)
    halves = layout(shape(heads=(2, 4)), 4)
    assert plan_reslice(whole, halves).copy.run_bytes == 2 * 4 * 3


@pytest.mark.parametrize(
    ("other", "size", "reason"),
    [
        (shape(model="n"), 4, "models differ: m and n"),
        (shape(dtype="f16"), 4, "dtypes differ: u8 and f16"),
        (shape(num_layers=3), 4, "numbers of layers differ: 2 and 3"),
        (shape(num_heads=8), 4, "numbers of KV heads differ: 4 and 8"),
        (shape(head_bytes=4), 4, "head sizes in bytes differ: 3 and 4"),
        (shape(), 6, "block size 6 is no multiple of 4"),
        (shape(num_heads=4, heads=(2, 4)), 4, "heads 0 to 1 are on one side, heads 2 to 3"),
        (None, 4, "does not say"),
    ],
)
def test_refusals_say_why(other, size, reason) -> None:
    source = layout(shape(heads=(0, 2)), 4)
    target = (
        KVLayout(fingerprint="t", block_size=size, block_bytes=1) if other is None else layout(other, size)
    )
    assert reason in why_not(source, target)
    with pytest.raises(ValueError, match=reason):
        plan_reslice(source, target)


def test_a_shape_that_lies_about_its_size_is_refused() -> None:
    honest = layout(shape(), 4)
    wrong = KVLayout(fingerprint="w", block_size=4, block_bytes=honest.block_bytes + 1, shape=shape())
    assert "is not what its shape says" in why_not(honest, wrong)


@pytest.mark.parametrize("index", [-1, 2, 3])
def test_blocks_without_a_source_are_refused(index) -> None:
    plan = plan_reslice(layout(shape(), 2), layout(shape(), 4))
    with pytest.raises(ValueError, match="begins behind"):
        plan.units([(index, 0)], 4)
