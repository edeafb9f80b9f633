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


async def test_all_that_is_there_comes_at_once_and_in_order() -> None:
    inbox = DeltaInbox()
    reading = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    inbox.put(1, Delta("a"))
    inbox.put(0, Delta("b"))
    assert [(index, delta.text) for index, delta in await reading] == [(1, "a"), (0, "b")]


async def test_an_error_comes_out_behind_what_is_there_and_the_first_one_counts() -> None:
    inbox = DeltaInbox()
    inbox.put(0, Delta("a"))
    inbox.fail(ValueError("first"))
    inbox.fail(ValueError("second"))
    assert len(await inbox.take()) == 1
    with pytest.raises(ValueError, match="first"):
        await inbox.take()


async def test_a_slow_reader_pauses_its_calls() -> None:
    inbox, calls = DeltaInbox(), [Source(), Source()]
    inbox.calls.extend(calls)
    for _ in range(MAX_WAITING):
        inbox.put(0, Delta("a"))
    assert not any(call.is_paused for call in calls)
    inbox.put(0, Delta("a"))
    assert all(call.is_paused for call in calls)
    assert len(await inbox.take()) == MAX_WAITING + 1
    assert not any(call.is_paused for call in calls)


async def test_leaving_closes_every_call() -> None:
    calls = [Source(), Source()]
    with DeltaInbox() as inbox:
        inbox.calls.extend(calls)
    assert all(call.is_closed for call in calls)
