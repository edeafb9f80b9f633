from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.transfer.spans import PIECE_BYTES, blocks_per_piece, neighbour_runs


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 8))
def test_runs_cover_everything_and_cannot_be_joined(block_ids: list[int], max_blocks: int) -> None:
    runs = list(neighbour_runs(block_ids, max_blocks))
    rebuilt = [block_ids[start] + offset for start, count in runs for offset in range(count)]
    assert rebuilt == block_ids
    assert all(1 <= count <= max_blocks for _, count in runs)
    for (start, count), (following, _) in itertools.pairwise(runs):
        assert following == start + count
        assert count == max_blocks or block_ids[following] != block_ids[following - 1] + 1


def test_a_piece_is_at_least_one_block() -> None:
    assert blocks_per_piece(1) == PIECE_BYTES
    assert blocks_per_piece(PIECE_BYTES * 3) == 1
