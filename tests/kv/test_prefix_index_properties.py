"""Whatever seats say, in whatever order, the index answers as the naive one does."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.kv.prefix_keys import extend_keys, pack_words
from dynamo_sdk.types import BlocksCleared, KVTier, MovedDigest, RemovedDigest, StoredDigest

from .naive_index import NaiveIndex, Prefix

SEATS = st.integers(0, 4)
TIERS = st.sampled_from([KVTier.DEVICE] * 4 + list(KVTier))
BLOCKS = st.lists(st.integers(1, 2), min_size=1, max_size=9)
SPREAD = 0x9E3779B97F4A7C15


def hashes_of(blocks: list[int] | Prefix) -> bytes:
    return pack_words([block * SPREAD % (1 << 64) for block in blocks])


class IndexAgainstNaive(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.naive = NaiveIndex()
        self.seen: set[Prefix] = set()
        self.num_named = 0

    def name(self, seat: int, prefix: Prefix, is_own_scheme: bool) -> int:
        """Most engines hash, and so agree; with a scheme of its own, a seat names every copy anew."""
        if not is_own_scheme:
            return hash((0, prefix)) % (1 << 64)
        self.num_named += 1
        return hash((seat, prefix, self.num_named)) % (1 << 64)

    @rule(
        seat=SEATS,
        tier=TIERS,
        blocks=BLOCKS,
        data=st.data(),
        is_own_scheme=st.booleans(),
        at_root=st.booleans(),
    )
    def store(
        self,
        seat: int,
        tier: KVTier,
        blocks: list[int],
        data: st.DataObject,
        is_own_scheme: bool,
        at_root: bool,
    ) -> None:
        known = sorted(
            (prefix, name)
            for (who, _tier), held in self.naive.names.items()
            if who == seat
            for name, prefix in held.items()
        )
        prefix: Prefix = ()
        parent: int | None = None
        if known and not at_root:
            prefix, parent = data.draw(st.sampled_from(known))
        names: list[int] = []
        for block in blocks:
            prefix = (*prefix, block)
            names.append(self.name(seat, prefix, is_own_scheme))
            self.seen.add(prefix)
        stored = StoredDigest(names=pack_words(names), hashes=hashes_of(blocks), parent=parent, tier=tier)
        assert self.index.apply(seat, stored) == self.naive.store(seat, parent, names, blocks, tier)

    @rule(seat=SEATS, blocks=BLOCKS, parent=st.integers(1, 9))
    def store_after_a_stranger(self, seat: int, blocks: list[int], parent: int) -> None:
        names = pack_words([parent + 100 * n for n, _ in enumerate(blocks, 1)])
        assert not self.index.apply(seat, StoredDigest(names=names, hashes=hashes_of(blocks), parent=parent))

    @precondition(lambda self: self.naive.names)
    @rule(data=st.data(), order=st.sampled_from(["forwards", "backwards", "random"]), stranger=st.booleans())
    def remove(self, data: st.DataObject, order: str, stranger: bool) -> None:
        seat, tier = data.draw(st.sampled_from(sorted(self.naive.names)))
        held = self.naive.names[seat, tier]
        if not held:
            return
        if order == "random":
            names = data.draw(st.lists(st.sampled_from(sorted(held)), min_size=1, max_size=6))
        else:  # a chain, as caches evict it
            last = data.draw(st.sampled_from(sorted(held.values())))
            first = data.draw(st.integers(0, len(last) - 1))
            chain = {prefix: name for name, prefix in held.items()}
            names = [chain[last[:n]] for n in range(first + 1, len(last) + 1) if last[:n] in chain]
            if order == "backwards":
                names.reverse()
        if stranger:
            names.insert(len(names) // 2, 77)
        self.naive.remove(seat, names, tier)
        self.index.apply(seat, RemovedDigest(names=pack_words(names), tier=tier))

    @precondition(lambda self: self.naive.names)
    @rule(data=st.data(), to_tier=TIERS)
    def move(self, data: st.DataObject, to_tier: KVTier) -> None:
        seat, tier = data.draw(st.sampled_from(sorted(self.naive.names)))
        held = sorted(self.naive.names[seat, tier])
        if not held:
            return
        names = data.draw(st.lists(st.sampled_from(held), min_size=1, max_size=4, unique=True))
        self.naive.move(seat, names, tier, to_tier)
        assert self.index.apply(seat, MovedDigest(names=pack_words(names), tier=tier, to_tier=to_tier))

    @rule(seat=SEATS)
    def clear(self, seat: int) -> None:
        self.naive.clear(seat)
        assert self.index.apply(seat, BlocksCleared())

    @rule(seat=SEATS)
    def drop(self, seat: int) -> None:
        self.naive.clear(seat)
        self.index.drop(seat)

    @invariant()
    def answers_agree(self) -> None:
        for prefix in sorted(self.seen)[:: max(1, len(self.seen) // 8)]:
            for prompt in (prefix, (*prefix, 3), prefix[:-1]):
                keys = extend_keys(0, 0, hashes_of(prompt))
                assert self.index.match(keys) == self.naive.match(prompt)

    @rule(seat=SEATS)
    def move_to_another_index(self, seat: int) -> None:
        """A snapshot is as good as what it was taken of, also for all that follows."""
        snapshot = self.index.snapshot(seat)
        self.index.clear(seat)
        for event in snapshot:
            assert self.index.apply(seat, event)

    @invariant()
    def books_add_up(self) -> None:
        self.index.check_integrity()
        assert self.index.statistics().num_entries == self.naive.num_entries
        held = {prefix for names in self.naive.names.values() for prefix in names.values()}
        assert self.index.num_blocks >= len(held)
        if not held:
            assert self.index.num_blocks == 0, "blocks that nobody holds"


TestIndexAgainstNaive = IndexAgainstNaive.TestCase
TestIndexAgainstNaive.settings = settings(
    max_examples=60, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
