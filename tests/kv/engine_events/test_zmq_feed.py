"""Messages that come late, twice, never, or from another publisher than before."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.kv.engine_events import FeedStep, ZmqEventFeed
from dynamo_sdk.types import BlocksCleared, BlocksRemoved, BlocksStored, KVEventBatch

SIZE = 2


def message(sequence: int, *events: object) -> list[bytes]:
    payload = msgspec.msgpack.encode([1.0, list(events), 0])
    return [b"", sequence.to_bytes(8, "big"), payload]


def stored(*names: int, parent: int | None = None, size: int = SIZE, salt: str | None = None) -> object:
    tokens = [token for name in names for token in range(100 * name, 100 * name + size)]
    keys = [[salt] if salt and not place else None for place in range(len(names))]
    return {
        "type": "BlockStored",
        "block_hashes": list(names),
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        "medium": "GPU",
        "extra_keys": keys,
    }


def removed(*names: int) -> object:
    return {"type": "BlockRemoved", "block_hashes": list(names), "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


@dataclass
class Reader:
    """Applies batches, as a listener does."""

    held: set[int | bytes] = field(default_factory=set)
    last: int = -1
    num_cleared: int = 0

    def read(self, batches: tuple[KVEventBatch, ...]) -> None:
        for batch in batches:
            assert batch.sequence == self.last + 1, "a gap in the feed's own numbers"
            self.last = batch.sequence
            for event in batch.events:
                match event:
                    case BlocksStored():
                        assert event.parent_hash is None or event.parent_hash in self.held
                        assert not self.held & set(event.block_hashes), "stored twice"
                        assert len(event.token_ids) == SIZE * len(event.block_hashes)
                        self.held |= set(event.block_hashes)
                    case BlocksRemoved():
                        assert self.held >= set(event.block_hashes), "removed what was not stored"
                        self.held -= set(event.block_hashes)
                    case BlocksCleared():
                        self.num_cleared += 1
                        self.held.clear()


def held_in(batch: KVEventBatch) -> set[int | bytes]:
    reader = Reader()
    reader.read((msgspec.structs.replace(batch, sequence=0),))
    return reader.held


def test_messages_in_order_become_batches():
    feed, reader = ZmqEventFeed(), Reader()
    for step in (
        feed.receive(message(0, stored(1, 2))),
        feed.receive(message(1, stored(3, parent=2))),
        feed.receive(message(2, removed(3))),
    ):
        assert step.ask_from is None
        reader.read(step.batches)
    assert reader.held == held_in(feed.snapshot()) == {1, 2}
    assert feed.snapshot().sequence == reader.last == 2


def test_a_gap_is_asked_for_once_and_filled_by_the_replay():
    feed, reader = ZmqEventFeed(), Reader()
    reader.read(feed.receive(message(0, stored(1))).batches)
    assert feed.receive(message(2, stored(3, parent=2))) == FeedStep(ask_from=1)
    assert feed.receive(message(3, stored(4, parent=3))) == FeedStep()
    reader.read(feed.receive(message(1, stored(2, parent=1)), is_replay=True).batches)
    reader.read(feed.receive(message(2, stored(3, parent=2)), is_replay=True).batches)
    reader.read(feed.replayed())
    assert (reader.held, reader.num_cleared, feed.num_lost) == ({1, 2, 3, 4}, 0, 0)


def test_what_cannot_be_replayed_clears_the_state():
    feed, reader = ZmqEventFeed(), Reader()
    reader.read(feed.receive(message(0, stored(1))).batches)
    feed.receive(message(5, stored(9)))
    reader.read(feed.replayed())
    assert (reader.held, reader.num_cleared, feed.num_lost) == ({9}, 1, 4)
    assert held_in(feed.snapshot()) == {9}


@pytest.mark.parametrize("first", [0, 2])
def test_a_publisher_that_counts_from_the_start_again_is_another_one(first: int):
    feed, reader = ZmqEventFeed(), Reader()
    for number in range(4):
        reader.read(feed.receive(message(number, stored(number + 1))).batches)
    step = feed.receive(message(first, stored(50 + first)))
    reader.read(step.batches)
    if step.ask_from is not None:
        for number in range(first + 1):
            reader.read(feed.receive(message(number, stored(50 + number)), is_replay=True).batches)
        reader.read(feed.replayed())
    assert reader.held == {50 + number for number in range(first + 1)}
    assert reader.num_cleared == 1


def test_a_replay_that_overlaps_with_what_is_published_is_no_restart():
    feed, reader = ZmqEventFeed(), Reader()
    for number in range(3):
        reader.read(feed.receive(message(number, stored(number + 1)), is_replay=True).batches)
    for number in range(4):
        reader.read(feed.receive(message(number, stored(number + 1))).batches)
    assert (reader.held, reader.num_cleared) == ({1, 2, 3, 4}, 0)


def test_what_is_said_twice_is_passed_on_once():
    feed, reader = ZmqEventFeed(), Reader()
    for number, event in enumerate(
        [stored(1, 2), stored(1, 2), stored(1, 2, 3), removed(2), removed(2), removed(7)]
    ):
        reader.read(feed.receive(message(number, event)).batches)
    assert reader.held == {1, 3}


def test_blocks_of_unknown_parents_and_of_other_sizes_are_left_out():
    feed = ZmqEventFeed(block_size=SIZE)
    assert feed.receive(message(0, stored(2, parent=1))) == FeedStep()
    assert feed.receive(message(1, stored(3, size=SIZE + 1))) == FeedStep()
    assert feed.snapshot().events == ()


def test_a_snapshot_knows_the_salt_of_every_block():
    feed = ZmqEventFeed()
    feed.receive(message(0, stored(1, 2, salt="tenant")))
    feed.receive(message(1, stored(3, parent=2)))
    events = [event for event in feed.snapshot().events if isinstance(event, BlocksStored)]
    assert [(event.block_hashes, event.cache_salt) for event in events] == [
        ((1,), "tenant"),
        ((2,), "tenant"),
        ((3,), "tenant"),
    ]


def test_a_message_that_cannot_be_read_costs_itself_only():
    feed, reader = ZmqEventFeed(), Reader()
    with pytest.raises(ValueError):
        feed.receive([b"", (0).to_bytes(8, "big"), b"\xc1"])
    with pytest.raises(ValueError):
        feed.receive([b"", b"x"])
    reader.read(feed.receive(message(1, stored(1))).batches)
    assert reader.held == {1}


EVENTS = st.one_of(
    st.builds(lambda name, parent: stored(name, parent=parent or None), st.integers(1, 9), st.integers(0, 9)),
    st.builds(removed, st.integers(1, 9)),
    st.just(CLEARED),
)


@given(st.lists(st.lists(EVENTS, max_size=3), max_size=12), st.data())
def test_whatever_is_lost_on_the_way_a_replay_brings_it_back(
    batches: list[list[object]], data: st.DataObject
):
    """Live messages are dropped at random; the publisher keeps all of them."""
    messages = [message(number, *events) for number, events in enumerate(batches)]
    whole, reference = ZmqEventFeed(), Reader()
    for frames in messages:
        reference.read(whole.receive(frames).batches)
    feed, reader = ZmqEventFeed(), Reader()
    for number, frames in enumerate(messages):
        is_last = number == len(messages) - 1
        if not is_last and data.draw(st.booleans()):
            continue
        step = feed.receive(frames)
        reader.read(step.batches)
        if step.ask_from is not None:
            for replayed in messages[step.ask_from : number + 1]:
                reader.read(feed.receive(replayed, is_replay=True).batches)
            reader.read(feed.replayed())
    assert reader.held == reference.held
    assert held_in(feed.snapshot()) <= reader.held
    assert feed.num_lost == 0
