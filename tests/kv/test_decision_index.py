from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.interfaces.router import Overlap
from dynamo_sdk.kv import DecisionIndex, PrefixIndex, deepest
from dynamo_sdk.kv.prefix_keys import extend_keys, pack_words

TTL_S = 10.0


def keys(*blocks: int) -> memoryview:
    return extend_keys(0, 0, pack_words([block * 0x9E3779B97F4A7C15 % (1 << 64) for block in blocks]))


def test_siblings_that_arrive_together_see_where_the_first_one_went():
    index = DecisionIndex(2.0)
    prompt = keys(*range(1, 9))
    assert index.match(prompt, 0.0) == {}
    index.record(3, prompt, 0.0)
    assert index.match(keys(1, 2, 3, 4, 5, 99), 0.001) == {3: Overlap(device_blocks=5)}


def test_a_decision_is_forgotten_unless_it_is_taken_again():
    index = DecisionIndex(TTL_S)
    index.record(0, keys(1, 2), 0.0)
    index.record(1, keys(1, 2), 0.0)
    index.record(1, keys(1, 2), 8.0)
    assert set(index.match(keys(1, 2), 9.9)) == {0, 1}
    assert set(index.match(keys(1, 2), 15.1)) == {1}
    assert index.match(keys(1, 2), 40.0) == {}
    assert index.num_entries == 0


def test_a_seat_that_is_gone_holds_nothing():
    index = DecisionIndex(TTL_S)
    index.record(0, keys(1, 2), 0.0)
    index.record(0, keys(1, 2), 6.0)
    index.drop(0)
    assert index.match(keys(1, 2), 6.0) == {}


def test_the_latest_decisions_stay_when_there_is_no_room_for_all():
    index = DecisionIndex(TTL_S, max_entries=30)
    for seat in range(20):
        index.record(seat, keys(seat, 1, 2, 3), 1.0)
        assert index.match(keys(seat), 1.0) == {seat: Overlap(device_blocks=1)}
        index.check_integrity()
    assert index.match(keys(0), 1.0) == {}
    index.record(0, keys(*range(100)), 1.0)
    index.check_integrity()


def test_events_and_decisions_together():
    held, decided = PrefixIndex(), DecisionIndex(2.0)
    held.store_prefix(0, keys(1, 2, 3))
    held.store_prefix(1, keys(1))
    decided.record(1, keys(1, 2), 0.0)
    decided.record(0, keys(1, 2), 0.0)
    prompt = keys(1, 2, 3, 4)
    found = deepest(held.match(prompt), decided.match(prompt, 0.0))
    assert found == {0: Overlap(device_blocks=3), 1: Overlap(device_blocks=2)}


decisions = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(1, 2), min_size=1, max_size=5), st.floats(0.0, 4.0)),
    max_size=40,
)


@given(decisions, st.lists(st.integers(1, 2), max_size=6))
def test_nothing_is_forgotten_early_or_remembered_long(
    taken: list[tuple[int, list[int], float]], prompt: list[int]
):
    index, now_s = DecisionIndex(TTL_S), 0.0
    log: list[tuple[int, list[int], float]] = []
    for seat, blocks, after_s in taken:
        now_s += after_s
        index.record(seat, keys(*blocks), now_s)
        log.append((seat, blocks, now_s))
        found = {seat: overlap.device_blocks for seat, overlap in index.match(keys(*prompt), now_s).items()}
        for who in range(4):
            at_least = depth(log, who, prompt, now_s - TTL_S)
            at_most = depth(log, who, prompt, now_s - 1.5 * TTL_S)
            assert at_least <= found.get(who, 0) <= at_most
        index.check_integrity()


def depth(log: list[tuple[int, list[int], float]], seat: int, prompt: list[int], since_s: float) -> int:
    """How much of ``prompt`` went to ``seat`` after ``since_s``."""
    best = 0
    for who, blocks, at_s in log:
        if who == seat and at_s > since_s:
            equal = [one == other for one, other in zip(blocks, prompt, strict=False)]
            best = max(best, [*equal, False].index(False))
    return best
