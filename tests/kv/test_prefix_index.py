"""Cases of ``PrefixIndex`` worth a name; the properties are in their own file."""

from __future__ import annotations

from random import Random

import pytest

from dynamo_sdk.interfaces.router import Overlap
from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.kv.prefix_keys import extend_keys, pack_words
from dynamo_sdk.types import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    KVTier,
    RemovedDigest,
    StoredDigest,
    pack_tokens,
)

BLOCK = 4
TOKENS = tuple(range(100, 140))  # ten blocks


def stored(first: int, end: int, *, tier: KVTier = KVTier.DEVICE, lora: str | None = None) -> BlocksStored:
    """Blocks ``first .. end - 1`` of ``TOKENS``; block ``i`` is named ``i``."""
    return BlocksStored(
        block_hashes=tuple(range(first, end)),
        parent_hash=first - 1 if first else None,
        token_ids=TOKENS[first * BLOCK : end * BLOCK],
        block_size=BLOCK,
        tier=tier,
        lora=lora,
    )


def keys(num_blocks: int = 10, *, lora: str | None = None) -> memoryview:
    return prefix_keys(pack_tokens(TOKENS[: num_blocks * BLOCK]), BLOCK, lora=lora)


def test_a_prompt_matches_as_far_as_each_seat_holds_it():
    index = PrefixIndex()
    index.apply(7, stored(0, 10))
    index.apply(512, stored(0, 3))
    index.apply(512, stored(3, 4))
    assert index.match(keys()) == {7: Overlap(device_blocks=10), 512: Overlap(device_blocks=4)}
    assert index.match(keys(2)) == {7: Overlap(device_blocks=2), 512: Overlap(device_blocks=2)}
    assert index.match(prefix_keys(pack_tokens([1] * 8), BLOCK)) == {}
    assert index.match(keys(0)) == {}
    assert index.num_blocks == 10, "blocks that both hold are there once"
    assert index.statistics().num_entries == 14


def test_an_adapter_has_blocks_of_its_own():
    index = PrefixIndex()
    index.apply(0, stored(0, 10, lora="sql"))
    assert index.match(keys()) == {}
    assert index.match(keys(lora="sql")) == {0: Overlap(device_blocks=10)}


def test_a_removed_parent_hides_what_follows_until_it_is_stored_again():
    index = PrefixIndex()
    index.apply(0, stored(0, 10))
    index.apply(0, BlocksRemoved(block_hashes=(4,)))
    assert index.match(keys()) == {0: Overlap(device_blocks=4)}
    index.apply(0, stored(4, 5))
    assert index.match(keys()) == {0: Overlap(device_blocks=10)}


def test_each_block_counts_in_its_fastest_tier():
    index = PrefixIndex()
    index.apply(0, stored(0, 6))
    index.apply(0, stored(0, 8, tier=KVTier.HOST))
    index.apply(0, stored(8, 9, tier=KVTier.DISK))
    index.apply(0, BlocksRemoved(block_hashes=(2,)))
    assert index.match(keys()) == {
        0: Overlap(device_blocks=5, host_blocks=3, disk_blocks=1, readable_blocks=9)
    }
    index.apply(0, BlocksRemoved(block_hashes=(2,), tier=KVTier.HOST))
    assert index.match(keys()) == {0: Overlap(device_blocks=2, readable_blocks=2)}, (
        "nobody can use what follows a hole"
    )


def test_what_others_can_read_lies_below_the_device():
    index = PrefixIndex()
    index.apply(0, stored(0, 8))
    index.apply(0, stored(0, 4, tier=KVTier.HOST))
    index.apply(0, stored(4, 6, tier=KVTier.DISK))
    index.apply(1, stored(0, 3))
    index.apply(1, stored(3, 9, tier=KVTier.HOST))
    found = index.match(keys())
    assert found[0] == Overlap(device_blocks=8, readable_blocks=6)
    assert found[1] == Overlap(device_blocks=3, host_blocks=6, readable_blocks=0)
    assert index.match(keys(5))[0].readable_blocks == 5


def test_cleared_and_dropped_seats_hold_nothing():
    index = PrefixIndex()
    for seat in range(3):
        index.apply(seat, stored(0, 10))
        index.apply(seat, stored(0, 2, tier=KVTier.HOST))
    index.apply(0, BlocksCleared())
    index.drop(1)
    index.drop(99)
    assert list(index.match(keys())) == [2]
    index.drop(2)
    assert index.num_blocks == 0
    index.apply(1, stored(0, 1))
    assert index.match(keys()) == {1: Overlap(device_blocks=1)}, "a number that was given out again"
    index.check_integrity()


def test_what_does_not_fit_is_counted_and_ignored():
    index = PrefixIndex()
    assert not index.apply(0, stored(3, 5))
    assert not index.apply(0, BlocksRemoved(block_hashes=(1, 2)))
    assert index.apply(0, stored(0, 2))
    assert not index.apply(0, BlocksRemoved(block_hashes=(1, 2)))
    statistics = index.statistics()
    assert (statistics.num_unplaced, statistics.num_unknown, statistics.num_entries) == (1, 3, 1)


def test_a_full_index_refuses_stores_and_goes_on_once_there_is_room():
    index = PrefixIndex(max_entries=10)
    assert index.apply(0, stored(0, 8))
    assert not index.apply(1, stored(0, 3))
    assert index.statistics().num_refused == 1
    index.apply(0, BlocksCleared())
    assert index.apply(1, stored(0, 3))


def test_names_and_hashes_come_in_pairs():
    with pytest.raises(ValueError, match="8 bytes of names for 16 bytes of hashes"):
        PrefixIndex().store(0, None, bytes(8), bytes(16))
    with pytest.raises(ValueError, match="3 tokens for 1 blocks of 4"):
        PrefixIndex().apply(
            0, BlocksStored(block_hashes=(1,), parent_hash=None, token_ids=(1, 2, 3), block_size=4)
        )


def test_names_may_be_bytes_or_signed():
    index = PrefixIndex()
    digest = bytes(range(32))
    index.apply(
        0, BlocksStored(block_hashes=(-1, digest), parent_hash=None, token_ids=TOKENS[:8], block_size=BLOCK)
    )
    assert index.apply(0, BlocksRemoved(block_hashes=((1 << 64) - 1,)))
    assert index.apply(0, BlocksRemoved(block_hashes=(digest,)))


def test_a_block_in_the_middle_is_found_by_its_name():
    """With many runs, long ago and just now: both ways of searching."""
    index = PrefixIndex()
    for run in range(200):
        names = pack_words(range(run * 100, run * 100 + 8))
        index.store(0, None, names, pack_words(range(run * 100 + 1, run * 100 + 9)))
    for run in (0, 150, 199):
        assert index.remove(0, pack_words([run * 100 + 3]))
        index.store(0, run * 100 + 5, pack_words([run * 100 + 50]), pack_words([77]))
        found = index.match(extend_keys(0, 0, pack_words(range(run * 100 + 1, run * 100 + 9))))
        assert found == {0: Overlap(device_blocks=3)}
    index.check_integrity()


def test_an_engine_that_gives_one_name_twice_breaks_nothing():
    random = Random(7)
    index = PrefixIndex()
    for _ in range(2000):
        seat = random.randrange(3)
        names = pack_words([random.randrange(6) for _ in range(random.randrange(1, 5))])
        hashes = pack_words([random.randrange(1, 4) for _ in range(len(names) // 8)])
        if random.random() < 0.6:
            index.apply(seat, StoredDigest(names=names, hashes=hashes, parent=random.choice([None, 1, 2])))
        else:
            index.apply(seat, RemovedDigest(names=names))
        index.check_integrity()
    for seat in range(3):
        index.clear(seat)
    index.check_integrity()
    assert index.num_blocks == 0


def test_cuts_that_have_lost_their_reason_are_undone():
    """Else the way down a popular prefix would get longer with every request that ever left it."""
    index, prefix = PrefixIndex(), list(range(1, 65))
    for seat in (0, 1):
        index.store(seat, None, pack_words(prefix), pack_words(prefix))
    for place in prefix[:-1]:
        index.store(0, place, pack_words([1000 + place]), pack_words([77]))
    assert index.statistics().num_runs == 2 * len(prefix) - 1
    for place in prefix[:-1]:
        index.remove(0, pack_words([1000 + place]))
    assert index.statistics().num_runs == len(prefix)
    index.store(1, None, pack_words([*prefix, 99]), pack_words([*prefix, 88]))
    assert index.statistics().num_runs == 2
    index.check_integrity()
    keys = extend_keys(0, 0, pack_words([*prefix, 88]))
    assert index.match(keys) == {0: Overlap(device_blocks=64), 1: Overlap(device_blocks=65)}
    index.remove(0, pack_words([30]))
    index.remove(1, pack_words([31]))
    assert index.match(keys) == {0: Overlap(device_blocks=29), 1: Overlap(device_blocks=30)}
