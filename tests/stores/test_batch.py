"""Batches cut into parts: every block in exactly one part, a few parts at a time."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.stores import RamStore, RamStoreConfig
from dynamo_sdk.stores.batch import PART_BYTES, in_parts, parts_of

from .conftest import block, key

pytestmark = pytest.mark.anyio


@given(
    st.integers(0, 200),
    st.integers(1 << 16, 1 << 25),
    st.integers(1, 4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_every_block_is_in_one_part(num_blocks, block_bytes, num_threads, is_ordered, random):
    seen, running, most = [], 0, 0

    async def work(start, end):
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen.extend(range(start, end))
        for _ in range(random.randrange(4)):
            await anyio.lowlevel.checkpoint()
        running -= 1

    parts = parts_of(num_blocks, block_bytes, num_threads, is_ordered=is_ordered)
    anyio.run(in_parts, parts, num_threads, work)
    assert seen == list(range(num_blocks))
    assert most <= 2 * num_threads


async def test_no_part_begins_after_a_failure():
    begun = []

    async def work(start, end):
        begun.append(start)
        await anyio.lowlevel.checkpoint()
        raise OSError(start)

    with pytest.raises(BaseExceptionGroup):
        await in_parts([(start, start + 10) for start in range(0, 100, 10)], 1, work)
    assert begun == [0, 10]


def sizes(num_blocks, block_bytes, num_threads, *, is_ordered):
    parts = parts_of(num_blocks, block_bytes, num_threads, is_ordered=is_ordered)
    return [end - start for start, end in parts]


def test_parts_of_an_ordered_medium_are_as_large_as_its_threads_allow():
    mib = 1 << 20
    assert sizes(64, mib, 2, is_ordered=True) == [16, 16, 16, 16]
    assert sizes(3, mib, 2, is_ordered=True) == [3]


def test_the_first_parts_are_small():
    mib = 1 << 20
    assert sizes(32, mib, 1, is_ordered=False) == [2, 4, 8, 8, 8, 2]
    assert sizes(8, mib, 1, is_ordered=False) == [8]
    assert sizes(3, 64 * mib, 1, is_ordered=False) == [1, 1, 1]


async def test_answers_stand_at_their_place_over_many_parts():
    size, num_blocks = PART_BYTES // 4, 22
    store = RamStore(RamStoreConfig(block_bytes=size, capacity_bytes=num_blocks * size))
    await store.start()
    try:
        offers = [BlockOffer(key(n), block(n, size if n % 7 else size - 1)) for n in range(num_blocks)]
        assert await store.put_many(offers) == [n % 7 != 0 for n in range(num_blocks)]
        into = [memoryview(bytearray(size)) for _ in range(num_blocks)]
        backwards = list(reversed(range(num_blocks)))
        found = await store.get_into([key(n) for n in backwards], into)
        assert found == [n % 7 != 0 for n in backwards]
        for n, memory in zip(backwards, into, strict=True):
            assert n % 7 == 0 or memory == block(n, size)
        assert store.statistics().written_bytes == 18 * size
        store.check_integrity()
    finally:
        await store.close()
