"""What tiers hold, and the events that tell it: an index that reads them must find the same prefixes."""

from array import array

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dynamo_sdk.interfaces import RestoredBlock
from dynamo_sdk.kv import (
    BlockPool,
    CachedBlock,
    PrefixIndex,
    TierContents,
    block_hashes,
    cache_keys,
    cache_root,
    digest,
    prefix_keys,
    routing_seed,
)
from dynamo_sdk.kv.prefix_keys import unpack_words
from dynamo_sdk.types import BlocksStored, KVTier, StoredDigest, pack_tokens

SIZE = 2
ROOT = cache_root(b"model")
PROMPTS = [pack_tokens(prompt) for prompt in ([1] * 8, [1, 1, 1, 1, 2, 2, 2, 2], [3] * 6)]


def blocks_of(prompt):
    keys, parent, found = cache_keys(prompt, SIZE, root=ROOT), None, []
    for number, key in enumerate(keys):
        tokens = prompt[number * SIZE * 4 : (number + 1) * SIZE * 4]
        found.append(CachedBlock(key, parent, tokens, None, None))
        parent = key
    return found


def restored(block):
    (token_hash,) = block_hashes(block.tokens, SIZE, seed=routing_seed())
    return RestoredBlock(block.key, block.parent, token_hash)


BLOCKS = {block.key: block for prompt in PROMPTS for block in blocks_of(prompt)}
some_keys = st.lists(st.sampled_from(sorted(BLOCKS, key=list(BLOCKS).index)), unique=True, max_size=4)
tiers = st.integers(0, 1)


class ContentsAgainstIndex(RuleBasedStateMachine):
    """A pool above, two tiers below; some indexes follow all along, others begin with a snapshot."""

    @initialize(
        is_warm=st.booleans(), kinds=st.sampled_from([(KVTier.HOST, KVTier.DISK), (KVTier.DISK,) * 2])
    )
    def start(self, is_warm, kinds):
        self.kinds = kinds
        self.pool = BlockPool(6, SIZE)
        self.contents = TierContents(kinds, SIZE, lambda key: self.pool.place_of(key) is not None)
        self.held = [set(), set()]
        self.followers = []
        if is_warm:
            known = [restored(block) for block in blocks_of(PROMPTS[0])]
            self.held[1].update(block.key for block in known)
            self.contents.restored(1, known[2:] + known[:2])
        else:
            self.held[1].update(block.key for block in blocks_of(PROMPTS[2]))
            self.contents.stored(1, sorted(self.held[1]))
        self.follow()
        if is_warm:
            self.ask(PROMPTS[0], is_learnt=False)

    @rule()
    def follow(self):
        """Somebody comes later and begins with a snapshot; those who were there before hear what is new in
        it, and what it has no longer."""
        tiers = self.contents.snapshot()
        self.publish()
        late = PrefixIndex()
        for event in (*self.pool.snapshot(), *tiers):
            assert late.apply(0, event)
        self.followers = [*self.followers[-2:], late]
        assert len({frozenset(told(index)) for index in self.followers}) == 1

    def publish(self):
        """Device first: what lies below may follow it."""
        for event in (*self.pool.take_events(), *self.contents.take_events()):
            for index in self.followers:
                assert index.apply(0, event)

    @rule()
    def reset(self):
        """The device forgets all; the tiers do not."""
        self.pool.reset()
        self.publish()

    @rule(prompt=st.sampled_from(PROMPTS))
    def compute(self, prompt):
        keys = cache_keys(prompt, SIZE, root=ROOT)
        allocation = self.pool.allocate(len(keys), keys)
        self.publish()
        if allocation is None:
            return
        first, kept = allocation.num_cached_blocks, allocation.block_ids
        if first < len(keys):
            new = self.pool.register(
                kept[first:],
                keys[first:],
                prompt[first * SIZE * 4 :],
                after=kept[first - 1] if first else None,
            )
            kept = (*kept[:first], *new)
        self.pool.release(kept)
        self.publish()

    @rule(tier=tiers, keys=some_keys)
    def bring_down(self, tier, keys):
        blocks = [BLOCKS[key] for key in keys if key not in self.held[tier]]
        self.contents.expect(tier, blocks)
        self.contents.stored(tier, [block.key for block in blocks])
        self.contents.expect_no_more(tier, blocks)
        self.held[tier].update(block.key for block in blocks)
        self.publish()

    @rule(tier=tiers, keys=some_keys)
    def lose(self, tier, keys):
        keys = [key for key in keys if key in self.held[tier]]
        self.contents.removed(tier, keys)
        self.held[tier].difference_update(keys)
        self.publish()

    @rule(prompt=st.sampled_from(PROMPTS))
    def ask(self, prompt, is_learnt=True):
        """After a request asked for it, an index sees what of its prefix is anywhere."""
        if is_learnt:
            self.contents.learn(blocks_of(prompt))
        self.publish()
        keys = cache_keys(prompt, SIZE, root=ROOT)
        expected = [self.place(key) for key in keys]
        end = expected.index(None) if None in expected else len(keys)
        for index in self.followers:
            overlap = index.match(prefix_keys(prompt, SIZE)).get(0)
            counts = (0, 0, 0)
            if overlap is not None:
                counts = (overlap.device_blocks, overlap.host_blocks, overlap.disk_blocks)
            kinds = (KVTier.DEVICE, KVTier.HOST, KVTier.DISK)
            assert counts == tuple(expected[:end].count(kind) for kind in kinds)

    def place(self, key):
        if self.pool.place_of(key) is not None:
            return KVTier.DEVICE
        return next((self.kinds[tier] for tier in (0, 1) if key in self.held[tier]), None)

    @invariant()
    def nobody_is_told_of_what_is_not_there(self):
        if not hasattr(self, "contents"):
            return
        there = {(KVTier.DEVICE, name(key)) for key in BLOCKS if self.pool.place_of(key) is not None}
        for tier in (0, 1):
            assert self.contents.num_blocks(tier) == len(self.held[tier])
            there |= {(self.kinds[tier], name(key)) for key in self.held[tier]}
        for index in self.followers:
            assert told(index) <= there
            index.check_integrity()

    def teardown(self):
        """Who comes last sees the same."""
        if hasattr(self, "contents"):
            self.follow()
            for prompt in PROMPTS:
                self.ask(prompt)


def told(index):
    """Tier and name of each block that an index believes in, those without a beginning included."""
    found = set()
    for event in index.snapshot(0):
        names = {(event.tier, word) for word in unpack_words(event.names)}
        found = found | names if isinstance(event, StoredDigest) else found - names
    return found


def name(key):
    return int.from_bytes(key[:8], "little")


TestContentsAgainstIndex = ContentsAgainstIndex.TestCase
TestContentsAgainstIndex.settings = settings(max_examples=150, stateful_step_count=30)


def test_two_tiers_of_one_name_are_one_to_readers():
    contents = TierContents([KVTier.REMOTE, KVTier.REMOTE], SIZE, lambda key: False)
    contents.snapshot()
    (first, *_) = blocks_of(PROMPTS[0])
    for tier in (0, 1):
        contents.expect(tier, [first])
        contents.stored(tier, [first.key])
    assert len(contents.take_events()) == 1
    contents.removed(0, [first.key])
    assert contents.take_events() == ()
    contents.removed(1, [first.key])
    (gone,) = contents.take_events()
    assert gone.tier is KVTier.REMOTE


def test_nothing_is_recorded_before_somebody_reads():
    contents = TierContents([KVTier.HOST], SIZE, lambda key: False)
    blocks = blocks_of(PROMPTS[0])
    contents.expect(0, blocks)
    contents.stored(0, [block.key for block in blocks])
    assert contents.take_events() == ()
    assert not contents.is_untold(blocks[0].key)
    (event,) = contents.snapshot()
    assert (len(event.block_hashes), event.tier, event.parent_hash) == (4, KVTier.HOST, None)


def test_hashes_stand_for_tokens_that_nobody_knows() -> None:
    stored = BlocksStored(
        block_hashes=(1, 2), parent_hash=None, token_ids=(), block_size=2, token_hashes=(7, 8)
    )
    assert digest(stored).hashes == array("Q", [7, 8]).tobytes()
    with pytest.raises(ValueError, match="1 hashes for 2 blocks"):
        digest(msgspec.structs.replace(stored, token_hashes=(7,)))
