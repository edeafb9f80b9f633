"""Calls between services, over real sockets and over the in-memory network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from dynamo_sdk.errors import (
    ConnectionLost,
    DeadlineExceeded,
    EngineFailed,
    GraphError,
    HandshakeError,
    InvalidRequest,
    Unavailable,
)
from dynamo_sdk.graph import endpoint, endpoints_of
from dynamo_sdk.runtime.calls import codecs_of
from dynamo_sdk.runtime.client import STREAM_CREDIT, connect
from dynamo_sdk.runtime.clock import ManualClock, settle
from dynamo_sdk.runtime.deadline import current_deadline_s, deadline_scope
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.link import HANDSHAKE_TIMEOUT_S
from dynamo_sdk.runtime.memory import Delivery, Fault, MemoryNetwork
from dynamo_sdk.runtime.network import Network, SocketNetwork
from dynamo_sdk.runtime.wire import WIRE_VERSION, Hello, encode_frame
from dynamo_sdk.types import WorkerId

from .services import Order, Point, Rig, Workshop, record_of, rig

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["unix", "tcp", "memory"])
async def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    network: Network = MemoryNetwork() if request.param == "memory" else SocketNetwork()
    address = "tcp:127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/w.sock"
    async with rig(network, address, secret="s") as ready:
        yield ready


async def test_arguments_and_results_keep_their_types(workshop: Rig) -> None:
    assert await workshop.edge.mirrored(Point(1, 2)) == Point(2, 1)
    assert await workshop.edge.mirrored(Point(1, 2), factor=3) == Point(6, 3)
    assert await workshop.edge.doubled(Order(item="tea", count=4)) == Order(item="tea", count=8)
    with pytest.raises(TypeError, match="missing a required argument: 'point'"):
        await workshop.edge.mirrored()  # type: ignore[call-arg]


async def test_arguments_of_another_type_are_refused_by_name(workshop: Rig) -> None:
    stream = aiter(workshop.edge.count("many"))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"Workshop\.count: bad arguments: Expected `int`"):
        await anext(stream)


async def test_a_stream_arrives_whole_and_in_order(workshop: Rig) -> None:
    assert [number async for number in workshop.edge.count(5 * STREAM_CREDIT)] == list(
        range(5 * STREAM_CREDIT)
    )


async def test_many_streams_share_a_connection(workshop: Rig) -> None:
    async def total(until: int) -> int:
        return sum([number async for number in workshop.edge.count(until)])

    totals = await asyncio.gather(*(total(until) for until in range(100)))
    assert totals == [until * (until - 1) // 2 for until in range(100)]


async def test_leaving_a_stream_closes_it_over_there(workshop: Rig) -> None:
    stream = workshop.edge.count(10**9)
    async with aclosing(stream):  # type: ignore[type-var]
        async for number in stream:
            if number == 3:
                break
    await workshop.workshop.closed.wait()
    assert workshop.server.num_calls == 0


async def test_cancelling_a_call_cancels_it_over_there(workshop: Rig) -> None:
    call = asyncio.create_task(workshop.edge.never())
    await workshop.workshop.started.wait()
    call.cancel()
    await asyncio.wait([call])
    await workshop.workshop.closed.wait()


async def test_a_reader_that_does_not_read_stops_the_writer(workshop: Rig) -> None:
    stream = workshop.edge.count(10**6)
    async with aclosing(stream):  # type: ignore[type-var]
        assert await anext(aiter(stream)) == 0
        await settle(2000)
        assert workshop.workshop.num_produced <= STREAM_CREDIT + 1


async def test_errors_come_back_as_themselves(workshop: Rig) -> None:
    with pytest.raises(InvalidRequest, match="no such thing") as caught:
        await workshop.edge.refuse()
    assert caught.value.param == "thing"
    with pytest.raises(EngineFailed, match="ZeroDivisionError: a bug"):
        await workshop.edge.break_down()
    assert await workshop.edge.mirrored(Point(1, 2)) == Point(2, 1)


async def test_an_unknown_endpoint_is_an_attribute_error_with_the_known_ones(workshop: Rig) -> None:
    with pytest.raises(AttributeError, match=r"no endpoint 'cuont' \(endpoints: mirrored, doubled, count"):
        _ = workshop.edge.cuont  # type: ignore[attr-defined]


async def test_a_closing_server_fails_its_calls(workshop: Rig) -> None:
    call = asyncio.create_task(workshop.edge.never())
    await workshop.workshop.started.wait()
    await workshop.server.close()
    with pytest.raises(ConnectionLost):
        await call
    assert workshop.workshop.closed.is_set()


async def test_a_draining_server_finishes_and_refuses(workshop: Rig) -> None:
    stream = aiter(workshop.edge.count(2 * STREAM_CREDIT))
    assert await anext(stream) == 0
    draining = asyncio.create_task(workshop.server.drain())
    await settle()
    with pytest.raises(Unavailable, match="draining"):
        await workshop.edge.mirrored(Point(1, 2))
    assert not draining.done()
    assert len([number async for number in stream]) == 2 * STREAM_CREDIT - 1
    await draining


async def test_a_call_cancelled_before_it_began_leaves_nothing(workshop: Rig) -> None:
    """Its Open and its Cancel arrive together, so its task ends before its first turn."""
    connection = await workshop.client.connections.to(WorkerId("w0"), None)
    await connection.open("never", msgspec.msgpack.encode([])).aclose()
    await workshop.client.ping(WorkerId("w0"))
    assert workshop.server.num_calls == 0
    assert not workshop.workshop.started.is_set()
    await workshop.server.drain()


async def test_pings_are_answered(workshop: Rig) -> None:
    await workshop.client.ping(WorkerId("w0"))
    with pytest.raises(ConnectionLost, match="worker w9 is gone"):
        await workshop.client.ping(WorkerId("w9"))


async def test_another_secret_is_refused(tmp_path: Path) -> None:
    async with rig(SocketNetwork(), f"unix:{tmp_path}/w.sock", secret="a", client_secret="b") as ready:
        with pytest.raises(HandshakeError, match="shared secret"):
            await ready.edge.mirrored(Point(1, 2))


@pytest.mark.parametrize("last_words", [b"", encode_frame(Hello(WIRE_VERSION, b"s" * 16))])
async def test_a_server_killed_in_the_handshake_is_a_lost_one(tmp_path: Path, last_words: bytes) -> None:
    """Retryable, so that a request which comes at that moment goes to another worker."""

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(last_words)
        writer.close()

    path = f"{tmp_path}/w.sock"
    async with await asyncio.start_unix_server(hang_up, path):
        with pytest.raises(ConnectionLost, match="closed by the peer"):
            await connect(SocketNetwork(), f"unix:{path}", secret="s")


async def test_a_server_that_accepts_and_says_nothing_is_a_lost_one() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock, faults=lambda _address, _data: Fault.DROP)
    async with rig(network, "memory:w", clock=clock) as ready:
        call = asyncio.create_task(ready.client.ping(WorkerId("w0")))
        await clock.advance(HANDSHAKE_TIMEOUT_S)
        with pytest.raises(ConnectionLost, match="memory:w: no answer to our greeting"):
            await call


async def test_a_stream_given_up_while_it_connects_fails_once_it_is_open() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock, faults=lambda _address, _data: Delivery(delay_s=1.0))
    async with rig(network, "memory:w", clock=clock) as ready:
        async with aclosing(ready.client.stream(WorkerId("w0"), "count", 3)) as stream:
            first = asyncio.create_task(anext(stream))
            await settle()
            stream.fail(EngineFailed("it stalled"))
            await clock.advance(5.0)
            with pytest.raises(EngineFailed, match="it stalled"):
                await first
        await clock.advance(5.0)
        assert ready.server.num_calls == 0


async def test_a_deadline_ends_a_call_on_both_sides() -> None:
    clock = ManualClock()
    async with rig(MemoryNetwork(clock=clock), "memory:w", clock=clock) as ready:
        call = asyncio.create_task(ready.client.call(WorkerId("w0"), "never", timeout_s=5.0))
        await ready.workshop.started.wait()
        await clock.advance(4.9)
        assert not call.done()
        await clock.advance(0.2)
        with pytest.raises(DeadlineExceeded, match="deadline of 5 s"):
            await call
        assert ready.workshop.closed.is_set()


async def test_calls_inherit_the_outer_deadline() -> None:
    clock = ManualClock()
    async with rig(MemoryNetwork(clock=clock), "memory:w", clock=clock) as ready:
        with deadline_scope(3.0), deadline_scope(100.0):
            assert current_deadline_s() == 3.0
            call = asyncio.create_task(ready.client.call(WorkerId("w0"), "never", timeout_s=50.0))
        assert current_deadline_s() is None
        await ready.workshop.started.wait()
        await clock.advance(3.1)
        with pytest.raises(DeadlineExceeded):
            await call


def test_types_that_cannot_travel_are_refused_before_anything_runs() -> None:
    class Socketry:
        @endpoint
        async def give(self, thing: int | str | Point | Order) -> None: ...

        @endpoint
        async def take(self) -> set[asyncio.Task[None]]:
            return set()

    with pytest.raises(GraphError, match="cannot cross processes"):
        codecs_of(endpoints_of(Socketry), "Socketry")


async def test_connecting_counts_against_the_deadline() -> None:
    """The server accepts and never greets."""
    clock = ManualClock()
    network = MemoryNetwork(clock=clock, faults=lambda _address, _data: Fault.DROP)
    async with rig(network, "memory:w", clock=clock) as ready:
        call = asyncio.create_task(ready.client.call(WorkerId("w0"), "never", timeout_s=3.0))
        await clock.advance(2.9)
        assert not call.done()
        await clock.advance(0.2)
        with pytest.raises(DeadlineExceeded, match="w0 did not answer in time"):
            await call


async def test_calls_go_to_replicas_that_are_ready_and_not_leaving() -> None:
    clock = ManualClock()
    network = MemoryNetwork(clock=clock)
    async with rig(network, "memory:w", clock=clock) as ready, rig(network, "memory:v", clock=clock) as other:
        discovery = MemoryDiscovery(clock=clock)
        for name, server, is_ready in (("a", ready.server, False), ("b", other.server, True)):
            record = msgspec.structs.replace(record_of(server, name), is_ready=is_ready)
            await discovery.register(record)
        fleet = FleetView(discovery)
        await fleet.start()
        client = ServiceClient("Workshop", Workshop, fleet, network, clock, None)
        mirrored = client.bound(client.codecs["mirrored"])
        for _ in range(4):
            await mirrored(Point(1, 2))
        assert (ready.workshop.num_mirrored, other.workshop.num_mirrored) == (0, 4)
        await other.server.drain()
        await settle()
        await mirrored(Point(1, 2))
        assert (ready.workshop.num_mirrored, other.workshop.num_mirrored) == (1, 4)
        await client.close()
        await fleet.close()


async def test_a_connection_to_a_leaving_replica_ends_with_its_last_stream(workshop: Rig) -> None:
    connection = await workshop.client.connections.to(WorkerId("w0"), None)
    stream = connection.open("count", msgspec.msgpack.encode([3]))
    connection.close_when_idle()
    assert connection.is_usable
    assert len([item async for item in stream]) == 3
    await settle()
    assert not connection.is_usable


async def test_a_stream_that_is_dropped_ends_over_there(workshop: Rig) -> None:
    async for number in workshop.edge.count(10**9):
        if number == 3:
            break
    await workshop.workshop.closed.wait()
    await settle()
    assert workshop.server.num_calls == 0
