from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.transfer import HostBlockMemory
from dynamo_sdk.transfer.region import describe_region, map_region
from dynamo_sdk.types import KVLayout

from .conftest import content, host_memory

TINY = KVLayout(fingerprint="tiny", block_size=1, block_bytes=8)
ids = st.lists(st.integers(0, 5), max_size=8)


@given(st.lists(st.tuples(ids, st.integers(0, 255)), max_size=6), ids)
def test_reads_see_the_last_writes(writes: list[tuple[list[int], int]], wanted: list[int]) -> None:
    memory, model = HostBlockMemory(TINY, 6), dict.fromkeys(range(6), bytes(8))
    for number, (block_ids, value) in enumerate(writes):
        data = b"".join(bytes([value, position, number, 0] * 2) for position in range(len(block_ids)))
        memory.write(block_ids, memoryview(data))
        for position, block_id in enumerate(block_ids):
            model[block_id] = data[8 * position : 8 * position + 8]
    into = bytearray(8 * len(wanted))
    memory.read(wanted, memoryview(into))
    assert bytes(into) == b"".join(model[block_id] for block_id in wanted)
    memory.close()


@pytest.mark.parametrize("block_ids", [[-1], [6], [5, 6]])
def test_blocks_outside_raise(memories: ExitStack, block_ids: list[int]) -> None:
    memory = host_memory(memories, 6, TINY)
    with pytest.raises(IndexError):
        memory.write(block_ids, memoryview(bytes(8 * len(block_ids))))


def test_others_map_the_same_bytes_and_nobody_shrinks_them(memories: ExitStack) -> None:
    memory = host_memory(memories, 6, TINY)
    region = memory.shared_region
    assert region is not None
    mapped = map_region(describe_region(region))
    memory.write([2], memoryview(b"12345678"))
    assert bytes(mapped[16:24]) == b"12345678"
    assert mapped.readonly
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(region.fd, 0)


def test_close_ends_the_sharing_and_keeps_the_bytes() -> None:
    memory = HostBlockMemory(TINY, 2)
    memory.write([1], memoryview(b"12345678"))
    memory.close()
    memory.close()
    assert memory.shared_region is None
    assert content(memory, 1) == b"12345678"
