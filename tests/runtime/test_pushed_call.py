"""Calls whose items are pushed to a listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_sdk.errors import ConnectionLost, DynamoError, InvalidRequest
from dynamo_sdk.runtime.calls import PushedCall
from dynamo_sdk.runtime.client import STREAM_CREDIT
from dynamo_sdk.runtime.memory import MemoryNetwork
from dynamo_sdk.runtime.network import Network, SocketNetwork
from dynamo_sdk.types import WorkerId

from .services import Rig, rig

pytestmark = pytest.mark.anyio

MANY = 5 * STREAM_CREDIT


class Notes:
    """Writes down what it is told. ``on_each`` is called with the number of items so far."""

    def __init__(self, on_each: Callable[[int], None] = lambda _num_items: None) -> None:
        self.items: list[Any] = []
        self.error: DynamoError | None = None
        self.over = asyncio.Event()
        self._on_each = on_each

    def on_item(self, item: Any) -> None:
        assert not self.over.is_set()
        self.items.append(item)
        self._on_each(len(self.items))

    def on_end(self, error: DynamoError | None) -> None:
        assert not self.over.is_set(), "it ended twice"
        self.error = error
        self.over.set()


@pytest.fixture(params=["unix", "memory"])
async def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    network: Network = MemoryNetwork() if request.param == "memory" else SocketNetwork()
    async with rig(network, f"unix:{tmp_path}/w.sock", secret="s") as ready:
        yield ready


def push(workshop: Rig, notes: Notes, endpoint: str, *args: object) -> PushedCall:
    call = workshop.client.push(WorkerId("w0"), endpoint, *args, listener=notes)
    assert not notes.items
    assert not notes.over.is_set()
    return call


async def test_everything_comes_in_order_also_on_a_connection_that_is_not_there_yet(workshop: Rig) -> None:
    for _ in range(2):
        notes = Notes()
        push(workshop, notes, "count", MANY)
        await notes.over.wait()
        assert (notes.items, notes.error) == (list(range(MANY)), None)


async def test_an_error_is_the_end(workshop: Rig) -> None:
    notes = Notes()
    push(workshop, notes, "count", "many")
    await notes.over.wait()
    assert isinstance(notes.error, InvalidRequest)


async def test_nobody_there_is_told_and_not_raised(workshop: Rig) -> None:
    notes = Notes()
    workshop.client.push(WorkerId("nobody"), "count", 3, listener=notes)
    await notes.over.wait()
    assert isinstance(notes.error, ConnectionLost)


async def test_cancelling_from_inside_is_the_last_word(workshop: Rig) -> None:
    notes = Notes(lambda num_items: call.cancel() if num_items == 3 else None)
    call = push(workshop, notes, "count", MANY)
    await workshop.workshop.closed.wait()
    assert notes.items == [0, 1, 2]
    assert not notes.over.is_set()


async def test_a_call_that_is_cancelled_before_it_is_connected_never_starts(workshop: Rig) -> None:
    notes = Notes()
    push(workshop, notes, "count", MANY).cancel()
    other = Notes()
    push(workshop, other, "count", 1)
    await other.over.wait()
    assert not notes.items
    assert not notes.over.is_set()
    assert workshop.workshop.num_closed == 1


async def test_a_paused_call_makes_the_server_wait(workshop: Rig) -> None:
    notes = Notes(lambda num_items: call.pause() if num_items == 10 else None)
    call = push(workshop, notes, "count", MANY)
    other = Notes()
    await workshop.workshop.started.wait()
    push(workshop, other, "count", MANY)
    await other.over.wait()  # a call beside it is not held up
    assert notes.items == list(range(10))
    assert workshop.workshop.num_produced <= MANY + 10 + 2 * STREAM_CREDIT
    call.resume()
    await notes.over.wait()
    assert (notes.items, notes.error) == (list(range(MANY)), None)


async def test_what_waits_when_the_connection_breaks_is_still_given(workshop: Rig) -> None:
    notes = Notes(lambda num_items: call.pause() if num_items == 10 else None)
    call = push(workshop, notes, "count", MANY)
    await workshop.workshop.started.wait()
    other = Notes()
    push(workshop, other, "count", MANY)
    await other.over.wait()
    await workshop.server.close()
    await asyncio.sleep(0)
    call.resume()
    await notes.over.wait()
    assert notes.items == list(range(len(notes.items)))
    assert 10 < len(notes.items) <= 10 + STREAM_CREDIT
    assert isinstance(notes.error, ConnectionLost)
