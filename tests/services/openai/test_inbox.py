from __future__ import annotations

import asyncio

import pytest

from dynamo_sdk.services.openai.choice import Delta
from dynamo_sdk.services.openai.inbox import MAX_WAITING, DeltaInbox

pytestmark = pytest.mark.anyio


class Source:
    def __init__(self) -> None:
        self.is_paused = self.is_closed = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        self.is_closed = True


class Reader:
    """Wants more until it has ``num_wanted`` deltas."""

    def __init__(self, num_wanted: int = 10**9) -> None:
        self.batches: list[list[str]] = []
        self._num_wanted = num_wanted

    def __call__(self, deltas: list[tuple[int, Delta]]) -> bool:
        self.batches.append([f"{index}{delta.text}" for index, delta in deltas])
        return sum(map(len, self.batches)) < self._num_wanted


async def test_all_that_comes_in_a_tick_is_one_call_in_order() -> None:
    inbox, reader = DeltaInbox(), Reader(4)
    inbox.put(0, Delta("a"))
    reading = asyncio.create_task(inbox.deliver(reader))
    await asyncio.sleep(0)
    inbox.put(1, Delta("b"))
    inbox.put(0, Delta("c"))
    await asyncio.sleep(0)
    assert reader.batches == [["0a"], ["1b", "0c"]]
    inbox.put(0, Delta("d"))
    await reading
    assert reader.batches[2:] == [["0d"]]


async def test_what_comes_between_two_deliveries_is_kept() -> None:
    inbox, first, second = DeltaInbox(), Reader(1), Reader(2)
    inbox.put(0, Delta("a"))
    await inbox.deliver(first)
    inbox.put(0, Delta("b"))
    inbox.put(0, Delta("c"))
    await asyncio.sleep(0)
    assert first.batches == [["0a"]]
    await inbox.deliver(second)
    assert second.batches == [["0b", "0c"]]


async def test_an_error_comes_out_behind_what_is_there_and_the_first_one_counts() -> None:
    inbox, reader = DeltaInbox(), Reader()
    inbox.put(0, Delta("a"))
    inbox.fail(ValueError("first"))
    inbox.fail(ValueError("second"))
    with pytest.raises(ValueError, match="first"):
        await inbox.deliver(reader)
    assert reader.batches == [["0a"]]


async def test_an_error_in_a_later_tick_ends_the_delivery() -> None:
    inbox = DeltaInbox()
    reading = asyncio.create_task(inbox.deliver(Reader()))
    await asyncio.sleep(0)
    inbox.fail(ValueError("later"))
    with pytest.raises(ValueError, match="later"):
        await reading


async def test_what_the_reader_raises_comes_out() -> None:
    def read(deltas: list[tuple[int, Delta]]) -> bool:
        raise KeyError("a bug")

    inbox = DeltaInbox()
    inbox.put(0, Delta("a"))
    with pytest.raises(KeyError):
        await inbox.deliver(read)


async def test_nothing_is_delivered_after_a_cancellation() -> None:
    inbox, reader = DeltaInbox(), Reader()
    reading = asyncio.create_task(inbox.deliver(reader))
    await asyncio.sleep(0)
    inbox.put(0, Delta("a"))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    inbox.put(0, Delta("b"))
    await asyncio.sleep(0)
    assert ["0b"] not in reader.batches


async def test_a_slow_reader_pauses_its_calls() -> None:
    inbox, calls = DeltaInbox(), [Source(), Source()]
    inbox.calls.extend(calls)
    for _ in range(MAX_WAITING):
        inbox.put(0, Delta("a"))
    assert not any(call.is_paused for call in calls)
    inbox.put(0, Delta("a"))
    assert all(call.is_paused for call in calls)
    await inbox.deliver(Reader(1))
    assert not any(call.is_paused for call in calls)


async def test_leaving_closes_every_call() -> None:
    calls = [Source(), Source()]
    with DeltaInbox() as inbox:
        inbox.calls.extend(calls)
    assert all(call.is_closed for call in calls)
