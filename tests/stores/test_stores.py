"""What holds for every store: the conformance kit, batches, eviction, cancellation, and a naive model."""

import random
from contextlib import asynccontextmanager

import anyio
import pytest

from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.testing import check_kv_store
from dynamo_sdk.transfer.host_pages import private_memory

from .conftest import NUM_BLOCKS, Witness, block, key

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def started(store):
    store.witness = Witness()
    store.listen(store.witness)
    await store.start()
    try:
        yield store
        store.check_integrity()
        assert store.witness.keys == set(store._index.keys())
    finally:
        await store.close()


def offers(numbers, block_bytes, priority=0):
    keys = [None, *[key(number) for number in numbers]]
    return [
        BlockOffer(key(number), block(number, block_bytes), parent, priority)
        for number, parent in zip(numbers, keys, strict=False)
    ]


async def test_conformance(make_store):
    report = await check_kv_store(make_store, block_bytes=make_store.block_bytes)
    report.raise_if_failed()


async def test_batches_into_given_memory(make_store):
    size = make_store.block_bytes
    async with started(make_store()) as store:
        assert await store.put_many(offers([1, 2, 3, 4], size)) == [True] * 4
        assert await store.count_prefix([key(1), key(2), key(9), key(3)]) == 2
        aligned = private_memory(5 * 8192)
        odd = memoryview(bytearray(5 * size + 1))[1:]
        for memory, step in ((aligned, 8192), (odd, size)):
            into = [memory[i * step : i * step + size] for i in range(5)]
            found = await store.get_into([key(3), key(9), key(1), key(4), key(3)], into)
            assert found == [True, False, True, True, True]
            assert [into[i] == block(n, size) for i, n in ((0, 3), (2, 1), (3, 4), (4, 3))] == [True] * 4
        statistics = store.statistics()
        assert (statistics.num_hits, statistics.num_lookups) == (8, 10)
        assert statistics.read_bytes == 8 * size
        assert statistics.written_bytes == 4 * size


async def test_misuse_is_named(make_store):
    async with started(make_store()) as store:
        assert await store.put(key(1), b"short") is False
        await store.put(key(1), block(1, make_store.block_bytes))
        with pytest.raises(ValueError, match="a buffer of 3 bytes"):
            await store.get_into([key(1)], [memoryview(bytearray(3))])
        with pytest.raises(ValueError, match="cannot be written"):
            await store.get_into([key(1)], [memoryview(bytes(make_store.block_bytes))])
        with pytest.raises(ValueError, match="32 bytes at most"):
            await store.put(b"x" * 33, block(1))


@pytest.mark.parametrize(
    ("eviction", "left"),
    [("lru", {1, 3, 4, 5, 6, 7}), ("leaf-first", {1, 2, 3, 4, 5, 7}), ("priority", {1, 2, 4, 5, 6, 7})],
)
async def test_eviction_is_the_policys(make_store, eviction, left):
    async with started(make_store(eviction)) as store:
        chain = offers(range(1, NUM_BLOCKS + 1), make_store.block_bytes, priority=1)
        chain[2] = BlockOffer(chain[2].key, chain[2].data, chain[2].parent, 0)
        await store.put_many(chain)
        await store.get(key(1))
        await store.put_many([BlockOffer(key(7), block(7, make_store.block_bytes), None, 2)])
        assert {n for n in range(1, 8) if (await store.contains([key(n)]))[0]} == left
        assert store.statistics().num_evicted == 1


async def test_cancelled_batches_leave_whole_blocks(make_store):
    size = make_store.block_bytes
    async with started(make_store()) as store:
        for turn in range(20):
            with anyio.move_on_after(0.0002 * (turn % 5)):
                await store.put_many(offers(range(turn, turn + 4), size))
            into = [memoryview(bytearray(size)) for _ in range(4)]
            with anyio.move_on_after(0.0002 * (turn % 3)):
                await store.get_into([key(turn + i) for i in range(4)], into)
            for number in range(turn, turn + 4):
                assert await store.get(key(number)) in (None, block(number, size))
            store.check_integrity()


async def test_ten_thousand_operations_against_a_model(make_store):
    """What is found was put and not deleted since; nothing is ever of another key."""
    size, rng = make_store.block_bytes, random.Random(7)
    possible = set()
    num_operations = 0
    async with started(make_store()) as store:

        async def work(own):
            nonlocal num_operations
            while num_operations < 10_000:
                num_operations += 1
                numbers = [rng.choice(own) for _ in range(rng.randint(1, 3))]
                match rng.randrange(4):
                    case 0:
                        possible.update(numbers)
                        await store.put_many(offers(numbers, size))
                    case 1:
                        await store.delete([key(number) for number in numbers])
                        possible.difference_update(numbers)
                    case 2:
                        into = [memoryview(bytearray(size)) for _ in numbers]
                        found = await store.get_into([key(number) for number in numbers], into)
                        for number, is_found, memory in zip(numbers, found, into, strict=True):
                            assert not is_found or number in possible
                            assert not is_found or memory == block(number, size)
                    case _:
                        for number, is_there in zip(
                            numbers, await store.contains([key(n) for n in numbers]), strict=True
                        ):
                            assert not is_there or number in possible

        async with anyio.create_task_group() as tasks:
            for worker in range(4):
                tasks.start_soon(work, range(worker * 4, worker * 4 + 4))
        statistics = store.statistics()
        assert statistics.num_hits > 100
        assert statistics.num_evicted > 100
        assert statistics.num_failures == 0


async def test_a_closed_store_finds_nothing_and_keeps_nothing(make_store):
    store = make_store()
    async with started(store):
        await store.put(key(1), block(1, make_store.block_bytes))
    assert await store.get(key(1)) is None
    assert await store.put(key(2), block(2, make_store.block_bytes)) is False
    assert await store.contains([key(1)]) == [False]
    await store.delete([key(1)])
