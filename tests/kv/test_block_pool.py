"""The pool against a naive model: a dict of what each block holds, and holders that say what they hold."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo_sdk.kv import BlockPool, cache_keys, cache_root
from dynamo_sdk.types import BlocksCleared, BlocksRemoved, BlocksStored, pack_tokens, unpack_tokens

BLOCK_SIZE = 2
NUM_BLOCKS = 6
ROOT = cache_root(b"test")


def keys_of(blocks):
    return cache_keys(pack_of(blocks), BLOCK_SIZE, root=ROOT)


def pack_of(blocks):
    """A block is named by one number; its two tokens are that number, twice."""
    return pack_tokens(number for block in blocks for number in (block, block))


@dataclass
class Holder:
    """A sequence that owns a block table. Its first ``num_registered`` blocks can be found by others."""

    content: list[int]
    block_ids: list[int]
    num_registered: int
    is_cut_off: bool = field(default=False)  # the cache was reset while it ran


class PoolAgainstModel(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.holders = []
        self.held_content = {}  # block -> the chain of numbers whose KV lies in it
        self.mirror = {}  # event hash -> (parent, tokens), built from events only

    @rule(content=st.lists(st.integers(0, 1), max_size=NUM_BLOCKS + 1), spare=st.integers(0, 2))
    def allocate(self, content, spare):
        keys = keys_of(content)
        free_before = self.pool.num_free_blocks
        num_cached = self.pool.count_cached(keys)
        has_room = self.pool.has_room(len(content), keys, num_spare_blocks=spare)
        found = self.pool.allocate(len(content), keys, num_spare_blocks=spare)
        assert has_room == (found is not None)
        if found is None:
            assert self.pool.num_free_blocks == free_before
            assert len(content) - num_cached + spare > free_before - num_cached  # at best all found are held
            return
        assert found.num_cached_blocks == num_cached
        assert self.pool.num_free_blocks >= spare or len(content) == num_cached
        for index, block in enumerate(found.block_ids):
            if index < num_cached:
                assert self.held_content[block] == tuple(content[: index + 1])
            else:
                assert all(block not in holder.block_ids for holder in self.holders)
        self.holders.append(Holder(list(content), list(found.block_ids), num_cached))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def grow(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        block = self.pool.allocate_one()
        if block is None:
            assert self.pool.num_free_blocks == 0
            return
        assert all(block not in h.block_ids for h in self.holders)
        holder.block_ids.append(block)
        holder.content.append(data.draw(st.integers(0, 1)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def register(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        start = holder.num_registered
        end = data.draw(st.integers(start, len(holder.block_ids)))
        if start == end:
            return
        for index in range(start, end):  # "compute" the KV first
            self.held_content[holder.block_ids[index]] = tuple(holder.content[: index + 1])
        kept = self.pool.register(
            holder.block_ids[start:end],
            keys_of(holder.content)[start:end],
            pack_of(holder.content[start:end]),
            after=holder.block_ids[start - 1] if start else None,
        )
        holder.block_ids[start:end] = kept
        for index in range(start, end):
            assert self.held_content[holder.block_ids[index]] == tuple(holder.content[: index + 1])
        if not holder.is_cut_off or start == 0:
            holder.num_registered = end
            assert self.pool.count_cached(keys_of(holder.content[:end])) == end

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(holder.block_ids)

    @rule()
    def reset(self):
        self.pool.reset()
        for holder in self.holders:
            holder.is_cut_off = holder.is_cut_off or holder.num_registered > 0

    @invariant()
    def books_add_up(self):
        self.pool.check_integrity()
        held = {block for holder in self.holders for block in holder.block_ids}
        assert self.pool.num_free_blocks == NUM_BLOCKS - len(held)
        for block in range(NUM_BLOCKS):
            assert self.pool.num_references(block) == sum(h.block_ids.count(block) for h in self.holders)

    @invariant()
    def events_tell_the_truth(self):
        follow(self.mirror, self.pool.take_events())
        snapshot = {}
        follow(snapshot, self.pool.snapshot())
        assert self.mirror == snapshot
        assert len(snapshot) == self.pool.num_cached_blocks


def follow(mirror, events):
    """What a router does with events; a parent must be there before its child, and leave after it."""
    for event in events:
        match event:
            case BlocksStored(block_hashes=hashes, parent_hash=parent, token_ids=tokens):
                assert len(tokens) == len(hashes) * BLOCK_SIZE
                for index, block_hash in enumerate(hashes):
                    assert parent is None or parent in mirror
                    assert block_hash not in mirror
                    mirror[block_hash] = (parent, tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
                    parent = block_hash
            case BlocksRemoved(block_hashes=hashes):
                for block_hash in hashes:
                    del mirror[block_hash]
                    assert all(parent != block_hash for parent, _ in mirror.values())
            case BlocksCleared():
                mirror.clear()


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=150, stateful_step_count=40)


def fill(pool, content):
    """Allocate, compute, register and release one sequence."""
    found = pool.allocate(len(content), keys_of(content))
    first = found.num_cached_blocks
    if first < len(content):
        pool.register(
            found.block_ids[first:],
            keys_of(content)[first:],
            pack_of(content[first:]),
            after=found.block_ids[first - 1] if first else None,
        )
    pool.release(found.block_ids)


def test_the_oldest_leaf_goes_first():
    pool = BlockPool(4, BLOCK_SIZE)
    fill(pool, [1, 2])
    fill(pool, [3, 4])
    fill(pool, [1])  # used again: the second sequence is the older one now, but [1, 2] stays a leaf
    remaining = []
    for _ in range(4):
        pool.allocate_one()
        remaining.append((pool.count_cached(keys_of([1, 2])), pool.count_cached(keys_of([3, 4]))))
    assert remaining == [(1, 2), (1, 1), (1, 0), (0, 0)]


def test_free_blocks_are_taken_before_cached_ones():
    pool = BlockPool(4, BLOCK_SIZE)
    fill(pool, [1, 2])
    pool.allocate(2)
    assert pool.count_cached(keys_of([1, 2])) == 2
    assert pool.num_free_blocks == 2


def test_two_copies_of_one_block_become_one():
    pool = BlockPool(4, BLOCK_SIZE)
    one, other = pool.allocate(1), pool.allocate(1)
    arguments = keys_of([7]), pack_of([7])
    assert pool.register(one.block_ids, *arguments, after=None) == one.block_ids
    assert pool.register(other.block_ids, *arguments, after=None) == one.block_ids
    assert pool.num_references(one.block_ids[0]) == 2
    assert pool.num_free_blocks == 3


def test_events_carry_tokens_parent_adapter_and_salt():
    pool = BlockPool(4, BLOCK_SIZE)
    found = pool.allocate(3)
    keys = keys_of([1, 2, 3])
    pool.register(found.block_ids[:1], keys[:1], pack_of([1]), after=None, lora="a", cache_salt="s")
    pool.register(
        found.block_ids[1:], keys[1:], pack_of([2, 3]), after=found.block_ids[0], lora="a", cache_salt="s"
    )
    first, second = pool.take_events()
    assert (first.parent_hash, first.token_ids) == (None, (1, 1))
    assert (second.parent_hash, second.token_ids) == (first.block_hashes[0], (2, 2, 3, 3))
    assert len(second.block_hashes) == 2
    assert (second.lora, second.cache_salt, second.block_size) == ("a", "s", BLOCK_SIZE)
    assert pool.take_events() == ()
    assert unpack_tokens(pack_of([2, 3])) == list(second.token_ids)


def test_misuse_raises():
    pool = BlockPool(2, BLOCK_SIZE)
    found = pool.allocate(1)
    with pytest.raises(ValueError, match="not held"):
        pool.register((1 - found.block_ids[0],), keys_of([1]), pack_of([1]), after=None)
    pool.register(found.block_ids, keys_of([1]), pack_of([1]), after=None)
    with pytest.raises(ValueError, match="already holds"):
        pool.register(found.block_ids, keys_of([2]), pack_of([2]), after=None)
    pool.release(found.block_ids)
    with pytest.raises(ValueError, match="more often"):
        pool.release(found.block_ids)
    with pytest.raises(ValueError, match="keys for"):
        pool.allocate(0, keys_of([1]))
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0, BLOCK_SIZE)
