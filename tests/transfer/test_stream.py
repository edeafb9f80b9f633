from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConnectionLost, TransferError
from dynamo_sdk.transfer.stream import receive_blocks, send_blocks

from .conftest import LAYOUT, content, fill, host_memory, pattern


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def a_minute() -> float:
    return 60.0


@given(st.data(), st.booleans(), st.booleans())
def test_blocks_arrive_in_order(data: st.DataObject, is_source_mapped: bool, is_own_mapped: bool) -> None:
    """Whatever runs the ids make, in place or through buffers."""
    held = data.draw(st.lists(st.integers(0, 15), max_size=40))
    own_ids = data.draw(st.permutations(range(40)))[: len(held)]
    with ExitStack() as stack:
        one, other = (stack.enter_context(end) for end in socket.socketpair())
        source, own = host_memory(stack, 16), host_memory(stack, 40)
        fill(source, 16)
        mapped = memoryview(source.blocks).cast("B") if is_source_mapped else None
        sender = threading.Thread(target=send_blocks, args=(one, source, mapped, held, a_minute))
        sender.start()
        own_mapped = memoryview(own.blocks).cast("B") if is_own_mapped else None
        receive_blocks(other, own, own_mapped, own_ids, a_minute)
        sender.join()
        for held_id, own_id in zip(held, own_ids, strict=True):
            assert content(own, own_id) == pattern(held_id, LAYOUT.block_bytes)


def test_a_peer_that_sends_too_little_is_not_waited_for_forever(ends, memories) -> None:
    """What came within one wait buys no other beyond the deadline."""
    waits = iter([0.01])

    def remaining_s() -> float:
        try:
            return next(waits)
        except StopIteration:
            raise TransferError("late") from None

    one, other = ends
    own = host_memory(memories, 2)
    one.sendall(bytes(LAYOUT.block_bytes + 1))
    with pytest.raises(TransferError, match="late"):
        receive_blocks(other, own, memoryview(own.blocks).cast("B"), [0, 1], remaining_s)


def test_a_peer_that_sends_nothing_is_not_waited_for_forever(ends, memories) -> None:
    own = host_memory(memories, 1)
    with pytest.raises(TimeoutError):
        receive_blocks(ends[1], own, memoryview(own.blocks).cast("B"), [0], lambda: 0.01)


def test_a_peer_that_takes_nothing_is_not_waited_for_forever(ends, memories) -> None:
    one, _ = ends
    source = host_memory(memories, 256)
    with pytest.raises(TimeoutError):
        send_blocks(one, source, memoryview(source.blocks).cast("B"), range(256), lambda: 0.01)


def test_an_early_end_is_an_error(ends, memories) -> None:
    one, other = ends
    own = host_memory(memories, 2)
    one.sendall(bytes(LAYOUT.block_bytes + 1))
    one.close()
    with pytest.raises(ConnectionLost):
        receive_blocks(other, own, memoryview(own.blocks).cast("B"), [0, 1], a_minute)


@pytest.mark.parametrize("block_id", [-1, 2])
def test_blocks_outside_are_refused(ends, memories, block_id) -> None:
    own = host_memory(memories, 2)
    with pytest.raises(IndexError):
        receive_blocks(ends[1], own, memoryview(own.blocks).cast("B"), [block_id], a_minute)
