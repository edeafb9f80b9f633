"""What a tier is offered: filters, and a queue that drops the oldest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.kv import CachedBlock, FrequencySketch, Important, NotPresent, OffloadQueue, SeenOften


def block(number, priority=0):
    key = number.to_bytes(16, "little")
    return CachedBlock(key, None, b"", None, None, priority)


def numbers(blocks):
    return [int.from_bytes(block.key, "little") for block in blocks]


def test_blocks_come_out_in_order_and_once():
    queue = OffloadQueue([], 10)
    assert queue.offer([block(1), block(2), block(1)]) == 2
    assert queue.offer([block(2), block(3)]) == 1
    assert numbers(queue.take(2)) == [1, 2]
    assert numbers(queue.take(2)) == [3]
    assert queue.take(2) == []


def test_what_is_being_copied_is_not_queued_again():
    queue = OffloadQueue([], 10)
    queue.offer([block(1)])
    taken = queue.take(1)
    assert queue.offer([block(1)]) == 0
    queue.done(taken)
    assert queue.offer([block(1)]) == 1


def test_a_full_queue_drops_the_oldest():
    queue = OffloadQueue([], 2)
    queue.offer([block(1), block(2), block(3)])
    assert queue.num_dropped == 1
    assert numbers(queue.take(5)) == [2, 3]


def test_what_is_cancelled_is_not_copied():
    queue = OffloadQueue([], 5)
    queue.offer([block(1), block(2)])
    queue.cancel([block(1).key, block(7).key])
    assert numbers(queue.take(5)) == [2]


def test_filters_say_no_and_are_counted():
    sketch = FrequencySketch(16)
    present = {block(1).key}
    queue = OffloadQueue([NotPresent(present), SeenOften(sketch, 2), Important(5)], 10)
    queue.offer([block(1)])
    queue.offer([block(2)])
    for _ in range(2):
        sketch.increment(block(2).key)
    queue.offer([block(2, priority=4)])
    queue.offer([block(2, priority=5)])
    assert queue.num_refused == {"present": 1, "rare": 1, "priority": 1}
    assert numbers(queue.take(5)) == [2]


def test_a_queue_has_room():
    with pytest.raises(ValueError, match="at least 1"):
        OffloadQueue([], 0)


@given(
    max_blocks=st.integers(1, 4),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.lists(st.integers(0, 9), max_size=6)),
            st.tuples(st.just("take"), st.integers(1, 4)),
            st.tuples(st.just("done"), st.none()),
            st.tuples(st.just("cancel"), st.lists(st.integers(0, 9), max_size=3)),
        )
    ),
)
def test_against_a_list(max_blocks, steps):
    queue = OffloadQueue([], max_blocks)
    waiting, taken, num_dropped = [], [], 0
    for name, value in steps:
        if name == "offer":
            queue.offer(map(block, value))
            for number in value:
                if number not in waiting and number not in taken:
                    waiting.append(number)
                    if len(waiting) > max_blocks:
                        waiting.pop(0)
                        num_dropped += 1
        elif name == "take":
            found = numbers(queue.take(value))
            assert found == waiting[:value]
            del waiting[:value]
            taken += found
        elif name == "done":
            queue.done(map(block, taken))
            taken = []
        else:
            queue.cancel(block(number).key for number in value)
            waiting = [number for number in waiting if number not in value]
        assert len(queue) == len(waiting) <= max_blocks
        assert queue.num_dropped == num_dropped
