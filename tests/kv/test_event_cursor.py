from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.kv.event_cursor import Apply, AskSnapshot, CursorAction, EventCursor, Replace
from dynamo_sdk.kv.prefix_keys import extend_keys, pack_words
from dynamo_sdk.types import BlocksCleared, KVDigest, KVDigestBatch, RemovedDigest, StoredDigest

SEAT = 0


def batch(sequence: int, *, is_snapshot: bool = False) -> KVDigestBatch:
    named = StoredDigest(names=pack_words([sequence]), hashes=pack_words([sequence]))
    return KVDigestBatch(sequence=sequence, dp_rank=0, digests=(named,), is_snapshot=is_snapshot)


def told(actions: list[CursorAction]) -> list[object]:
    """The numbers of batches applied, ``-n`` for a snapshot ``n``, ``"ask"``."""
    found: list[object] = []
    for action in actions:
        if isinstance(action, AskSnapshot):
            found.append("ask")
            continue
        (named,) = action.digests
        assert isinstance(named, StoredDigest)
        number = int.from_bytes(named.names, "little")
        found.append(number if isinstance(action, Apply) else -number)
    return found


def test_batches_in_order_are_applied_and_duplicates_are_not():
    cursor = EventCursor()
    assert [told(cursor.receive(batch(n))) for n in (0, 1, 1, 0, 2)] == [[0], [1], [], [], [2]]
    assert (cursor.last, cursor.num_duplicates, cursor.num_gaps) == (2, 2, 0)


def test_a_gap_asks_once_and_what_came_early_follows_the_snapshot():
    cursor = EventCursor()
    cursor.receive(batch(0))
    assert told(cursor.receive(batch(2))) == ["ask"]
    assert told(cursor.receive(batch(4))) == []
    assert told(cursor.receive(batch(3, is_snapshot=True))) == [-3, 4]
    assert (cursor.last, cursor.is_waiting, cursor.num_snapshots) == (4, False, 1)


def test_a_batch_that_was_only_late_closes_the_gap():
    cursor = EventCursor()
    cursor.receive(batch(0))
    cursor.receive(batch(2))
    assert told(cursor.receive(batch(1))) == [1, 2]
    assert not cursor.is_waiting
    assert told(cursor.receive(batch(2, is_snapshot=True))) == [], "it brings nothing new"


def test_a_snapshot_that_does_not_reach_the_gap_is_asked_for_again():
    cursor = EventCursor()
    cursor.receive(batch(0))
    cursor.receive(batch(5))
    assert told(cursor.receive(batch(3, is_snapshot=True))) == [-3, "ask"]
    assert told(cursor.receive(batch(6, is_snapshot=True))) == [-6]


def test_a_sender_whose_snapshot_is_older_has_begun_anew():
    cursor = EventCursor()
    for number in range(9):
        cursor.receive(batch(number))
    assert told(cursor.receive(batch(2, is_snapshot=True))) == [-2]
    assert told(cursor.receive(batch(3))) == [3]
    assert (cursor.last, cursor.is_waiting, cursor.num_restarts) == (3, False, 1)


@pytest.mark.parametrize("number", [0, 1])
def test_a_restart_while_a_snapshot_is_waited_for_ends_the_wait(number: int):
    cursor = EventCursor()
    cursor.receive(batch(0))
    cursor.receive(batch(1))
    assert told(cursor.receive(batch(5))) == ["ask"]
    assert told(cursor.receive(batch(number, is_snapshot=True))) == [-number], "and does not ask for ever"
    assert told(cursor.receive(batch(number + 1))) == [number + 1]
    assert (cursor.is_waiting, cursor.num_restarts) == (False, 1)


def test_the_first_snapshot_may_be_of_a_worker_that_has_said_nothing():
    cursor = EventCursor()
    (replace,) = cursor.receive(KVDigestBatch(sequence=-1, dp_rank=0, digests=(), is_snapshot=True))
    assert replace == Replace(())
    assert told(cursor.receive(batch(0))) == [0]


def test_what_is_kept_is_bounded():
    cursor = EventCursor(max_kept=4)
    for number in range(1, 50):
        cursor.receive(batch(number))
        cursor.check_integrity()
    assert told(cursor.receive(batch(49, is_snapshot=True))) == [-49]
    assert not cursor.is_waiting


def part(sequence: int, number: int, *, num_parts: int = 3) -> KVDigestBatch:
    whole = batch(10 * sequence + number, is_snapshot=True)
    return msgspec.structs.replace(whole, sequence=sequence, part=number, num_parts=num_parts)


def test_a_snapshot_in_parts_counts_when_the_last_is_here():
    cursor = EventCursor()
    for number in (0, 1):
        assert cursor.receive(part(7, number)) == []
        assert not cursor.is_live
        assert cursor.last == -1
    assert cursor.receive(part(7, 2)) == [
        Replace(tuple(digest for number in range(3) for digest in part(7, number).digests))
    ]
    assert (cursor.is_live, cursor.last, cursor.num_snapshots) == (True, 7, 1)


def test_parts_of_a_snapshot_that_broke_off_are_dropped():
    cursor = EventCursor()
    cursor.receive(part(7, 0))
    cursor.receive(part(8, 0, num_parts=2))
    assert cursor.receive(part(8, 1, num_parts=2)) == [
        Replace(tuple(digest for number in range(2) for digest in part(8, number).digests))
    ]


def test_parts_without_their_beginning_are_asked_for_again():
    cursor = EventCursor()
    assert told(cursor.receive(part(7, 1))) == ["ask"]
    cursor.receive(part(7, 0))
    assert told(cursor.receive(part(8, 1))) == ["ask"]
    assert told(cursor.receive(batch(8, is_snapshot=True))) == [-8]
    assert cursor.is_live


class AnyDelivery(RuleBasedStateMachine):
    """A worker, and a line that loses, doubles and mixes what it says, snapshots included."""

    def __init__(self) -> None:
        super().__init__()
        self.truth, self.copy = PrefixIndex(), PrefixIndex()
        self.held: list[int] = []
        self.number = -1
        self.num_names = 0
        self.line: list[KVDigestBatch] = []
        self.cursor = EventCursor(max_kept=3)
        self.is_asked = False

    def say(self, *digests: KVDigest) -> None:
        self.number += 1
        for event in digests:
            self.truth.apply(SEAT, event)
        self.line.append(KVDigestBatch(sequence=self.number, dp_rank=0, digests=digests))

    @rule(blocks=st.lists(st.integers(1, 2), min_size=1, max_size=3), data=st.data())
    def store(self, blocks: list[int], data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([None, *self.held]))
        names = list(range(self.num_names + 1, self.num_names + 1 + len(blocks)))
        self.num_names += len(blocks)
        self.held += names
        hashes = pack_words([block * 0x9E3779B97F4A7C15 % (1 << 64) for block in blocks])
        self.say(StoredDigest(names=pack_words(names), hashes=hashes, parent=parent))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.held))
        self.held.remove(name)
        self.say(RemovedDigest(names=pack_words([name])))

    @rule()
    def clear(self) -> None:
        self.held.clear()
        self.say(BlocksCleared())

    @precondition(lambda self: self.line)
    @rule(data=st.data(), stays=st.booleans(), is_first=st.booleans())
    def deliver(self, data: st.DataObject, stays: bool, is_first: bool) -> None:
        at = 0 if is_first else data.draw(st.integers(0, len(self.line) - 1))
        self.take(self.line[at] if stays else self.line.pop(at))

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.line.pop(data.draw(st.integers(0, len(self.line) - 1)))

    @precondition(lambda self: self.is_asked)
    @rule()
    def answer(self) -> None:
        self.is_asked = False
        self.line.append(self.snapshot())

    @rule()
    def restart(self) -> None:
        """The sender counts from the beginning. The reader is connected anew, and gets a snapshot where it
        has seen more than there is."""
        self.truth.clear(SEAT)
        self.held.clear()
        self.line.clear()
        self.number = -1
        if self.cursor.is_waiting or self.cursor.last > self.number:
            self.take(self.snapshot())

    def snapshot(self) -> KVDigestBatch:
        return KVDigestBatch(
            sequence=self.number, dp_rank=0, digests=self.truth.snapshot(SEAT), is_snapshot=True
        )

    def take(self, delivered: KVDigestBatch) -> None:
        for action in self.cursor.receive(delivered):
            if isinstance(action, AskSnapshot):
                self.is_asked = True
                continue
            if isinstance(action, Replace):
                self.copy.clear(SEAT)
            for event in action.digests:
                self.copy.apply(SEAT, event)

    @invariant()
    def books_add_up(self) -> None:
        self.cursor.check_integrity()
        self.copy.check_integrity()
        if self.cursor.last == self.number:
            assert self.copy.num_held(SEAT) == self.truth.num_held(SEAT)

    def teardown(self) -> None:
        """Once the worker says one more thing, and answers when it is asked, both hold the same."""
        self.store_last()
        self.take(self.line[-1])
        if self.cursor.is_waiting:
            self.take(self.snapshot())
        assert self.cursor.last == self.number
        assert not self.cursor.is_waiting
        assert self.copy.num_held(SEAT) == self.truth.num_held(SEAT)
        for length in range(1, 5):
            for which in range(2**length):
                hashes = [(1 + (which >> bit & 1)) * 0x9E3779B97F4A7C15 % (1 << 64) for bit in range(length)]
                keys = extend_keys(0, 0, pack_words(hashes))
                assert self.copy.match(keys) == self.truth.match(keys)

    def store_last(self) -> None:
        self.say(StoredDigest(names=pack_words([999_999]), hashes=pack_words([7])))


TestAnyDelivery = AnyDelivery.TestCase
TestAnyDelivery.settings = settings(max_examples=80, stateful_step_count=40)
