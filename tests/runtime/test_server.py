"""The server's end of a connection, below endpoints: how calls end, and what strangers may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest

from dynamo_sdk.errors import DeadlineExceeded, EngineFailed, Unavailable
from dynamo_sdk.interfaces import ItemSource
from dynamo_sdk.runtime.client import STREAM_CREDIT, connect
from dynamo_sdk.runtime.clock import ManualClock, settle
from dynamo_sdk.runtime.link import HANDSHAKE_FRAME_BYTES
from dynamo_sdk.runtime.memory import MemoryNetwork
from dynamo_sdk.runtime.server import Server, ServerStream
from dynamo_sdk.runtime.wire import LENGTH_BYTES

pytestmark = pytest.mark.anyio

ADDRESS = "memory:server"
NOTHING = b"\xc0"


class Tidy:
    """A handler that needs a while to clean up after it was cancelled."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.num_cleaned = 0

    async def handle(self, stream: ServerStream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.num_cleaned += 1


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork(clock=self.clock)
        self.tidy = Tidy()
        self.server = Server(self.network, self.tidy.handle, clock=self.clock)


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    ready = Rig()
    await ready.server.start(ADDRESS)
    try:
        yield ready
    finally:
        ready.tidy.may_end.set()
        await ready.server.close()


async def test_a_deadline_on_both_sides_interrupts_the_handler_once() -> None:
    """Client and server see the same moment; the client's Cancel must not cut the clean-up short."""
    async with rig() as ready:
        client = await connect(ready.network, ADDRESS, clock=ready.clock)
        stream = client.open("work", NOTHING, timeout_s=5.0)
        await ready.clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            await anext(stream)
        await settle()
        ready.tidy.may_end.set()
        await settle()
        assert ready.tidy.num_cleaned == 1


async def test_a_connection_lost_after_a_cancel_interrupts_the_handler_once() -> None:
    async with rig() as ready:
        client = await connect(ready.network, ADDRESS, clock=ready.clock)
        stream = client.open("work", NOTHING)
        await settle()
        await stream.aclose()
        await settle()
        client.close_soon()
        await settle()
        ready.tidy.may_end.set()
        await settle()
        assert ready.tidy.num_cleaned == 1


async def test_closing_waits_for_handlers_whose_connection_is_gone_already() -> None:
    async with rig() as ready:
        client = await connect(ready.network, ADDRESS, clock=ready.clock)
        client.open("work", NOTHING)
        await settle()
        client.close_soon()
        await settle()
        closing = asyncio.create_task(ready.server.close())
        await settle()
        assert not closing.done()
        ready.tidy.may_end.set()
        await closing
        assert ready.tidy.num_cleaned == 1


async def test_a_cancelled_close_says_so() -> None:
    async with rig() as ready:
        client = await connect(ready.network, ADDRESS, clock=ready.clock)
        client.open("work", NOTHING)
        await settle()
        closing = asyncio.create_task(ready.server.close())
        await settle()
        closing.cancel()
        await settle()
        assert closing.cancelled()


async def test_a_draining_server_refuses_on_new_connections_too() -> None:
    async with rig() as ready:
        old = await connect(ready.network, ADDRESS, clock=ready.clock)
        running = old.open("work", NOTHING)
        await settle()
        draining = asyncio.create_task(ready.server.drain())
        await settle()
        new = await connect(ready.network, ADDRESS, clock=ready.clock)
        with pytest.raises(Unavailable, match="draining"):
            await anext(new.open("work", NOTHING))
        ready.tidy.may_end.set()
        await running.aclose()
        await draining


async def test_an_error_that_quotes_no_text_still_reaches_the_caller() -> None:
    async def fail(_: ServerStream) -> None:
        raise EngineFailed("no file /models/\udcff", param="\udcff")

    network = MemoryNetwork()
    server = Server(network, fail)
    await server.start(ADDRESS)
    client = await connect(network, ADDRESS)
    with pytest.raises(EngineFailed, match=r"no file /models/\\udcff"):
        await anext(client.open("work", NOTHING))
    client.close_soon()
    await server.close()


async def test_a_stranger_cannot_make_the_server_hold_a_large_frame() -> None:
    async with rig() as ready:
        closed = asyncio.Event()
        channel = await ready.network.connect(ADDRESS, lambda _: None, closed.set)
        channel.write((HANDSHAKE_FRAME_BYTES + 1).to_bytes(LENGTH_BYTES, "little"))
        await closed.wait()


async def test_frames_may_be_large_once_the_handshake_is_over() -> None:
    async def echo(stream: ServerStream) -> None:
        await stream.send(bytes(stream.payload))

    network = MemoryNetwork()
    server = Server(network, echo, secret="s")
    await server.start(ADDRESS)
    client = await connect(network, ADDRESS, secret="s")
    payload = b"\xc5" + (60_000).to_bytes(2, "big") + bytes(60_000)
    assert bytes(await anext(client.open("echo", payload))) == payload
    client.close_soon()
    await server.close()


async def test_a_draining_server_still_answers_what_helps_it_to_end() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    answered: list[str] = []

    async def handle(stream: ServerStream) -> None:
        answered.append(stream.method)

    server = Server(network, handle, clock=clock, while_draining=frozenset({"release"}))
    await server.start(ADDRESS)
    client = await connect(network, ADDRESS, clock=clock)
    await server.drain()
    for method in ("generate", "release"):
        stream = client.open(method, NOTHING)
        with pytest.raises((StopAsyncIteration, Unavailable)):
            await anext(stream)
    assert answered == ["release"]
    await client.aclose()
    await server.close()


class Numbers(ItemSource[int]):
    """What ``put`` gave since the last ``take``, as one sum: a source that merges. It ends at ``last``."""

    def __init__(self, last: int) -> None:
        self.is_over = False
        self.num_taken = self.num_closed = 0
        self.error: Exception | None = None
        self._last = last
        self._numbers: list[int] = []
        self._on_ready: Callable[[], None] | None = None

    def put(self, number: int) -> None:
        self._numbers.append(number)
        if self._on_ready is not None:
            self._on_ready()

    def fail(self, error: Exception) -> None:
        self.error = error
        assert self._on_ready is not None
        self._on_ready()

    def listen(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready

    def take(self) -> int | None:
        if self.error is not None:
            raise self.error
        if not self._numbers:
            return None
        numbers, self._numbers = self._numbers, []
        self.num_taken += 1
        self.is_over = self._last in numbers
        return sum(numbers)

    def close(self) -> None:
        self.num_closed += 1


LAST = 1_000_000


@dataclass
class PushRig:
    network: MemoryNetwork
    clock: ManualClock
    source: Numbers
    server: Server


@asynccontextmanager
async def push_rig() -> AsyncIterator[PushRig]:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    source = Numbers(LAST)

    async def handle(stream: ServerStream) -> None:
        await stream.send_all(source, msgspec.msgpack.encode)

    server = Server(network, handle, clock=clock)
    await server.start(ADDRESS)
    try:
        yield PushRig(network, clock, source, server)
    finally:
        await server.close()


def number(item: msgspec.Raw) -> int:
    return msgspec.msgpack.decode(item, type=int)


async def test_a_source_is_sent_item_by_item_to_its_end() -> None:
    async with push_rig() as rig:
        rig.source.put(1)  # before anybody listens
        client = await connect(rig.network, ADDRESS, clock=rig.clock)
        stream = client.open("count", NOTHING)
        assert number(await anext(stream)) == 1
        rig.source.put(2)
        assert number(await anext(stream)) == 2
        rig.source.put(LAST)
        assert number(await anext(stream)) == LAST
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert rig.source.num_closed
        await rig.server.drain()
        client.close_soon()


async def test_what_the_client_has_no_credit_for_stays_with_the_source_and_merges() -> None:
    async with push_rig() as rig:
        client = await connect(rig.network, ADDRESS, clock=rig.clock)
        stream = client.open("count", NOTHING)
        await settle()
        for _ in range(10 * STREAM_CREDIT):
            rig.source.put(1)
            await settle(3)
        assert rig.source.num_taken == STREAM_CREDIT
        rig.source.put(LAST)
        received = [number(item) async for item in stream]
        assert received == [1] * STREAM_CREDIT + [9 * STREAM_CREDIT + LAST]
        client.close_soon()


async def test_a_source_that_fails_ends_its_stream_with_the_error_and_is_closed() -> None:
    async with push_rig() as rig:
        client = await connect(rig.network, ADDRESS, clock=rig.clock)
        stream = client.open("count", NOTHING)
        await settle()
        rig.source.put(1)
        rig.source.fail(Unavailable("gone fishing"))
        assert number(await anext(stream)) == 1
        with pytest.raises(Unavailable, match="fishing"):
            await anext(stream)
        assert rig.source.num_closed
        client.close_soon()


@pytest.mark.parametrize("ending", ["cancel", "deadline", "lost"])
async def test_a_call_that_ends_early_closes_its_source(ending: str) -> None:
    async with push_rig() as rig:
        client = await connect(rig.network, ADDRESS, clock=rig.clock)
        stream = client.open("count", NOTHING, timeout_s=5.0)
        await settle()
        assert not rig.source.num_closed
        if ending == "cancel":
            await stream.aclose()
        elif ending == "deadline":
            await rig.clock.advance(5.0)
        else:
            client.close_soon()
        await settle()
        assert rig.source.num_closed == 1
        rig.source.put(1)  # nobody is there; nobody is disturbed
        assert rig.source.num_taken == 0
        client.close_soon()


async def test_the_end_may_come_in_the_tick_in_which_a_full_socket_has_room_again() -> None:
    async with push_rig() as rig:
        client = await connect(rig.network, ADDRESS, clock=rig.clock)
        stream = client.open("count", NOTHING)
        await settle()
        [connection] = rig.server._connections
        has_room = asyncio.Event()
        assert connection.channel is not None
        connection.channel.is_writable = has_room.is_set  # type: ignore[method-assign]
        connection.channel.wait_writable = has_room.wait  # type: ignore[method-assign, assignment]
        rig.source.put(1)
        await settle()
        assert rig.source.num_taken == 0, "it stays with the source"
        has_room.set()
        rig.source.put(LAST)  # before the task that waits for room has had its turn
        assert number(await anext(stream)) == 1 + LAST
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        async with asyncio.timeout(10):
            await rig.server.drain()
        client.close_soon()
