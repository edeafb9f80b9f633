from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.kv import BlockPool, EventLog, PrefixIndex, cache_keys, cache_root, prefix_keys
from dynamo_sdk.types import BlocksStored, KVDigestBatch, KVEventBatch, pack_tokens

BLOCK = 4
PROMPTS = [[head, *range(tail)] for head in (1, 2) for tail in (7, 11, 19)]


def stored(sequence: int, *, rank: int = 0, num_tokens: int = BLOCK) -> KVEventBatch:
    event = BlocksStored(
        block_hashes=(sequence,), parent_hash=None, token_ids=(sequence,) * num_tokens, block_size=BLOCK
    )
    return KVEventBatch(sequence=sequence, dp_rank=rank, events=(event,))


def kinds(batches: list[KVDigestBatch]) -> list[tuple[int, int, bool]]:
    return [(batch.dp_rank, batch.sequence, batch.is_snapshot) for batch in batches]


def test_a_new_reader_gets_a_snapshot_of_every_rank_and_an_old_one_what_it_lacks():
    log = EventLog()
    log.begin([KVEventBatch(sequence=4, dp_rank=0, events=()), stored(7, rank=1)])
    assert kinds(log.after({})) == [(0, 4, True), (1, 7, True)]
    log.append(stored(5))
    log.append(stored(6))
    assert kinds(log.after({0: 4, 1: 7})) == [(0, 5, False), (0, 6, False)]
    assert kinds(log.after({0: 3})) == [(0, 6, True), (1, 7, True)]
    assert log.after({0: 6, 1: 7}) == []
    assert kinds(log.after({0: 9, 1: 7})) == [(0, 6, True)], "a number that was never given out"


def test_what_is_kept_is_bounded_and_who_lacks_more_gets_a_snapshot():
    log = EventLog(max_blocks=20)
    log.begin([KVEventBatch(sequence=-1, dp_rank=0, events=())])
    for number in range(100):
        log.append(stored(number))
        log.check_integrity()
    assert kinds(log.after({0: 89})) == [(0, number, False) for number in range(90, 100)]
    [snapshot] = log.after({0: 88})
    assert snapshot.is_snapshot
    assert len(snapshot.digests) == 100


def test_after_a_gap_it_begins_anew_and_readers_get_a_snapshot():
    log = EventLog()
    log.begin([KVEventBatch(sequence=-1, dp_rank=0, events=())])
    assert [log.append(stored(number)) for number in (0, 1, 5)] == [True, True, False]
    log.begin([stored(5)])
    [snapshot] = log.after({0: 2})
    assert kinds([snapshot]) == [(0, 5, True)]
    assert len(snapshot.digests) == 1
    assert log.after({0: 5}) == []
    log.check_integrity()


def test_an_engine_that_counts_backwards_is_numbered_on():
    log = EventLog()
    log.begin([KVEventBatch(sequence=-1, dp_rank=0, events=())])
    for number in range(5):
        assert log.append(stored(number))
    assert not log.append(stored(0))
    log.begin([stored(0)])
    [snapshot] = log.after({0: 4})
    assert kinds([snapshot]) == [(0, 5, True)]
    assert len(snapshot.digests) == 1, "what it held before is gone"
    for number in range(1, 9):
        assert log.append(stored(number))
    assert kinds(log.after({0: 12})) == [(0, 13, False)]
    assert kinds(log.after({0: 4})) == [(0, 13, True)], "batches of the new life do not follow the old one's"
    log.check_integrity()


def test_an_event_that_makes_no_sense_is_left_out_and_said(caplog: pytest.LogCaptureFixture):
    log = EventLog()
    with caplog.at_level(logging.WARNING):
        log.append(stored(0, num_tokens=BLOCK - 1))
    assert "3 tokens for 1 blocks of 4" in caplog.text
    [batch] = log.after({0: -1})
    assert batch.digests == ()


@given(
    st.lists(st.tuples(st.sampled_from(PROMPTS), st.booleans()), max_size=25),
    st.integers(0, 25),
    st.integers(0, 25),
)
def test_readers_agree_with_a_pool_whenever_they_join(
    work: list[tuple[list[int], bool]], joins: int, leaves: int
):
    """A pool that evicts; a reader from the beginning, one that joins late and one that misses some."""
    pool, log = BlockPool(8, BLOCK), EventLog(max_blocks=12)
    log.begin([KVEventBatch(sequence=-1, dp_rank=0, events=pool.snapshot())])
    readers = [(PrefixIndex(), {0: -1}), (PrefixIndex(), {}), (PrefixIndex(), {0: -1})]
    for number, (prompt, resets) in enumerate(work):
        run(pool, prompt, resets)
        log.append(KVEventBatch(sequence=number, dp_rank=0, events=pool.take_events()))
        read(log, *readers[0])
        if number >= joins:
            read(log, *readers[1])
        if number <= leaves:
            read(log, *readers[2])
    for index, seen in readers:
        read(log, index, seen)
        index.check_integrity()
        assert index.num_held(0) == pool.num_cached_blocks
        for prompt in PROMPTS:
            tokens = pack_tokens(prompt)
            found = index.match(prefix_keys(tokens, BLOCK)).get(0)
            num_cached = pool.count_cached(cache_keys(tokens, BLOCK, root=cache_root(b"")))
            assert (found.device_blocks if found else 0) == num_cached


def run(pool: BlockPool, prompt: list[int], resets: bool) -> None:
    """A request for ``prompt`` comes and goes."""
    if resets and len(prompt) == 8:
        pool.reset()
    tokens = pack_tokens(prompt)
    keys = cache_keys(tokens, BLOCK, root=cache_root(b""))
    taken = pool.allocate(len(keys), keys)
    assert taken is not None
    blocks, num_cached = taken.block_ids, taken.num_cached_blocks
    if num_cached < len(blocks):
        after = blocks[num_cached - 1] if num_cached else None
        own = tokens[num_cached * BLOCK * 4 : len(keys) * BLOCK * 4]
        blocks = blocks[:num_cached] + pool.register(blocks[num_cached:], keys[num_cached:], own, after=after)
    pool.release(blocks)


def read(log: EventLog, index: PrefixIndex, seen: dict[int, int]) -> None:
    for batch in log.after(seen):
        if batch.is_snapshot:
            index.clear(batch.dp_rank)
        for event in batch.digests:
            assert index.apply(batch.dp_rank, event)
        seen[batch.dp_rank] = batch.sequence
