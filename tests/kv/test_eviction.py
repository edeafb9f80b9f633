"""Every policy and the slot index, against models that sort and search."""

from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo_sdk.kv import FrequencySketch, LeafFirst, Lfu, StoreIndex, eviction_policy
from dynamo_sdk.kv.eviction import NUM_LFU_CANDIDATES
from dynamo_sdk.kv.frequency_sketch import MAX_COUNT

NUM_SLOTS = 5


def key(number):
    return blake2b(b"%d" % number, digest_size=16).digest()


KEYS = [key(number) for number in range(12)]


class NaivePolicy:
    """Knows everything about every kept key and sorts."""

    def __init__(self, name):
        self.name = name
        self.kept = {}  # key -> [parent, priority, used at]
        self.uses = Counter()
        self.tick = 0

    def added(self, key, parent, priority):
        self.kept[key] = [parent, priority, 0]
        self.used(key)

    def used(self, key):
        self.tick += 1
        self.kept[key][2] = self.tick
        self.uses[key] += 1

    def victim(self, spared):
        by_age = sorted((key for key in self.kept if key not in spared), key=lambda key: self.kept[key][2])
        if self.name == "priority":
            by_age.sort(key=lambda key: self.kept[key][1])
        if self.name == "leaf-first":
            parents = {parent for parent, _, _ in self.kept.values()}
            by_age = [key for key in by_age if key not in parents]
        if self.name == "lfu":
            by_age.sort(key=lambda key: self.uses[key])
        return by_age[0] if by_age else None


class IndexAgainstModel(RuleBasedStateMachine):
    name = "lru"

    def __init__(self):
        super().__init__()
        self.index = StoreIndex(NUM_SLOTS, eviction_policy(self.name, 1 << 14))
        self.model = NaivePolicy(self.name)
        self.slots = {}  # held key -> slot
        self.writing = []
        self.readers = []  # (key, slot)
        self.withheld = set()

    def pinned(self):
        return {key for key, slot in self.readers if self.slots.get(key) == slot}

    def busy_slots(self):
        return {r.slot for r in self.writing} | set(self.slots.values()) | {slot for _, slot in self.readers}

    @rule(key=st.sampled_from(KEYS), parent=st.sampled_from([None, *KEYS]), priority=st.integers(-1, 1))
    def reserve(self, key, parent, priority):
        if key in self.slots or self.index.is_writing(key):
            with pytest.raises(ValueError, match="held already"):
                self.index.reserve(key)
            return
        parent = None if parent == key else parent
        expected = None
        if len(self.busy_slots() | self.withheld) == NUM_SLOTS:
            expected = self.model.victim(self.pinned())
            if expected is None:
                assert self.index.reserve(key, parent=parent) is None
                return
        found = self.index.reserve(key, parent=parent, priority=priority)
        assert found.evicted == expected
        if expected is not None:
            del self.slots[expected], self.model.kept[expected]
        assert found.slot not in self.busy_slots() | self.withheld
        self.writing.append(found)

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), is_good=st.booleans())
    def end_write(self, data, is_good):
        reservation = data.draw(st.sampled_from(self.writing))
        self.writing.remove(reservation)
        if is_good:
            self.index.commit(reservation)
            self.slots[reservation.key] = reservation.slot
            self.model.added(reservation.key, reservation.parent, reservation.priority)
        else:
            self.index.abandon(reservation)

    @rule(key=st.sampled_from(KEYS))
    def pin(self, key):
        slot = self.index.pin(key)
        assert slot == self.slots.get(key)
        if slot is not None:
            self.readers.append((key, slot))
            self.model.used(key)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def unpin(self, data):
        reader = data.draw(st.sampled_from(self.readers))
        self.readers.remove(reader)
        self.index.unpin(*reader)

    @rule(key=st.sampled_from(KEYS))
    def use_or_forget(self, key):
        if key in self.slots:
            self.index.use(key)
            self.model.used(key)
        else:
            assert not self.index.forget(key)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def forget(self, data):
        key = data.draw(st.sampled_from(sorted(self.slots)))
        assert self.index.forget(key)
        del self.slots[key], self.model.kept[key]

    @rule(first_slot=st.integers(0, NUM_SLOTS))
    def withhold(self, first_slot):
        self.index.withhold(first_slot)
        self.withheld |= set(range(first_slot, NUM_SLOTS)) - self.busy_slots()

    @rule()
    def give_back(self):
        self.index.give_back()
        self.withheld.clear()

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=6))
    def count_prefix(self, keys):
        expected = next((i for i, key in enumerate(keys) if key not in self.slots), len(keys))
        assert self.index.count_prefix(keys) == expected

    @invariant()
    def adds_up(self):
        self.index.check_integrity()
        assert set(self.index.keys()) == set(self.slots)
        assert self.index.num_used_slots == len(self.busy_slots())


@pytest.mark.parametrize("name", ["lru", "lfu", "priority", "leaf-first"])
def test_index_against_model(name):
    machine = type(f"Index_{name}", (IndexAgainstModel,), {"name": name})
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
    machine.TestCase("runTest").debug()


def test_unknown_policy_names_the_others():
    with pytest.raises(ValueError, match=r"no eviction policy 'fifo' .*leaf-first, lfu, lru, priority"):
        eviction_policy("fifo", 1)


def test_leaf_first_takes_a_chain_from_its_end():
    policy = LeafFirst()
    chain, other = KEYS[:4], KEYS[4]
    for parent, child in zip([None, *chain], chain, strict=False):
        policy.added(child, parent=parent, priority=0)
    policy.added(other, parent=None, priority=0)
    order = []
    while (victim := policy.victim(())) is not None:
        policy.removed(victim)
        order.append(victim)
    assert order == [*reversed(chain), other]


def test_leaf_first_heap_stays_small():
    policy = LeafFirst()
    policy.added(KEYS[0], parent=None, priority=0)
    for _ in range(10_000):
        policy.used(KEYS[0])
    assert len(policy._leaves) <= 64 + 2 + 1


def test_lfu_looks_at_the_oldest_only():
    policy = Lfu(64)
    keys = [key(number) for number in range(NUM_LFU_CANDIDATES + 4)]
    for one in keys:
        policy.added(one, parent=None, priority=0)
    for one in keys[:NUM_LFU_CANDIDATES]:
        policy.used(one)
        policy._keys.move_to_end(one, last=False)  # stay old
    assert policy.victim(()) in keys[:NUM_LFU_CANDIDATES]


@given(st.lists(st.integers(0, 30), max_size=150))
def test_sketch_is_never_too_low_before_ageing(numbers):
    sketch = FrequencySketch(16)  # ages after 160
    for number in numbers:
        sketch.increment(key(number))
    for number, count in Counter(numbers).items():
        assert count <= sketch.estimate(key(number)) <= len(numbers)


def test_sketch_ages_and_saturates():
    sketch = FrequencySketch(16)
    for _ in range(159):
        sketch.increment(KEYS[0])
    assert sketch.estimate(KEYS[0]) == 159
    sketch.increment(KEYS[0])
    assert sketch.estimate(KEYS[0]) == 80
    large = FrequencySketch(1000)
    for _ in range(MAX_COUNT + 10):
        large.increment(KEYS[0])
    assert large.estimate(KEYS[0]) == MAX_COUNT


def test_restore_refuses_what_is_taken():
    index = StoreIndex(2, eviction_policy("lru", 2))
    first = index.reserve(KEYS[0])
    index.abandon(first)
    index.restore([first])
    assert KEYS[0] in index
    with pytest.raises(ValueError, match="is taken"):
        index.restore([first])
    index.check_integrity()
