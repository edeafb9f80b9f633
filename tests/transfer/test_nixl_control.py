"""What we do with NIXL, with a stand-in for it: tickets, polling, the end of reads, what is given back.
``test_nixl.py`` runs the real one."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError, TransferError
from dynamo_sdk.interfaces import MemorySpan
from dynamo_sdk.transfer import nixl as nixl_room
from dynamo_sdk.transfer import wire
from dynamo_sdk.transfer.link import Link
from dynamo_sdk.transfer.nixl import AgentOnDemand, NixlAgent
from dynamo_sdk.transfer.ticket import decode_ticket
from dynamo_sdk.types import KVLayout, TransferSettings

from .conftest import ManualClock, content, fill, host_memory, pattern
from .fake_nixl import FakeNixl
from .test_fetch import ELSEWHERE, CopiedMemory, fetching, serving

pytestmark = pytest.mark.anyio

FORCED = TransferSettings(back_end="nixl")
TCP = "tcp:127.0.0.1:0"


@pytest.fixture
def nixl() -> FakeNixl:
    return FakeNixl()


def on_demand(nixl: FakeNixl) -> AgentOnDemand:
    return AgentOnDemand(partial(NixlAgent, module=nixl.module()))


async def test_blocks_move_and_all_is_given_back(nixl, memories, releases) -> None:
    source, own = host_memory(memories, 32), host_memory(memories, 32)
    fill(source, 32)
    held, pairs = [3, 4, 5, 9, 31], [(1, 7), (2, 8), (4, 0), (0, 30)]
    async with (
        serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server,
        fetching(host=ELSEWHERE, settings=FORCED, nixl=on_demand(nixl)) as fetcher,
    ):
        await server.register(source)
        for request_id in ("a", "b"):
            params = server.issue(request_id, held, source, ttl_s=30, release=releases.of(request_id))
            report = await fetcher.fetch(params, pairs, own, timeout_s=10)
            assert (report.back_end, report.num_bytes) == ("nixl", 4 * 4096)
            for index, own_id in pairs:
                assert content(own, own_id) == pattern(held[index], 4096)
            own.blocks[:] = 0
        assert len(nixl.registered) == 2
        assert [len(handle.local) for handle in nixl.handles] == [3, 3], "neighbours move together"
    assert releases.counts == {"a": 1, "b": 1}
    assert not nixl.registered
    assert all(handle.is_released for handle in nixl.handles)


async def test_a_prefill_worker_makes_progress_while_it_is_read(nixl, memories) -> None:
    nixl.needs_peer = True
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    async with (
        serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server,
        fetching(settings=FORCED, nixl=on_demand(nixl)) as fetcher,
    ):
        await server.register(source)
        params = server.issue("r", [0], source, ttl_s=30, release=lambda: None)
        await fetcher.fetch(params, [(0, 1)], own, timeout_s=20)
        assert nixl.num_served


def test_one_thread_serves_all_readers_and_ends_with_the_last(nixl) -> None:
    agent = NixlAgent(module=nixl.module())
    first, second = agent.begin_serving(), agent.begin_serving()
    assert wait_until(lambda: nixl.num_served > 3)
    assert num_serving() == 1
    first()
    first()
    before = nixl.num_served
    assert wait_until(lambda: nixl.num_served > before + 3), "one is still reading"
    second()
    assert wait_until(lambda: num_serving() == 0)
    third = agent.begin_serving()
    assert wait_until(lambda: num_serving() == 1)
    agent.close()
    assert wait_until(lambda: num_serving() == 0)
    third()


def test_serving_that_fails_is_a_line_in_the_log(nixl, caplog) -> None:
    agent = NixlAgent(module=nixl.module())
    nixl.outcome = "no progress"
    end = agent.begin_serving()
    assert wait_until(lambda: "NIXL makes no progress" in caplog.text and num_serving() == 0)
    end()
    agent.close()


async def test_readers_through_nixl_take_no_thread_that_checksums_need(nixl, memories) -> None:
    settings = TransferSettings(back_end="nixl", verify=True)
    source, own = host_memory(memories, 8), host_memory(memories, 8)
    fill(source, 8)
    async with (
        serving(TCP, settings=settings, nixl=on_demand(nixl), max_concurrent_sends=1) as server,
        fetching(settings=settings, nixl=on_demand(nixl)) as fetcher,
    ):
        await server.register(source)
        params = [server.issue(f"r{n}", [n], source, ttl_s=30, release=lambda: None) for n in range(4)]
        await asyncio.gather(
            *(fetcher.fetch(ticket, [(0, n)], own, timeout_s=20) for n, ticket in enumerate(params))
        )
    assert all(content(own, n) == pattern(n, 4096) for n in range(4))


async def test_a_reader_that_hangs_is_served_as_long_as_its_lease(nixl, memories) -> None:
    source = host_memory(memories, 2)
    async with serving(TCP, settings=FORCED, nixl=on_demand(nixl), lease_s=0.05) as server:
        await server.register(source)
        params = server.issue("r", [0], source, ttl_s=30, release=lambda: None)
        link = Link(decode_ticket(params), None, secret=None, deadline_s=60.0, now=lambda: 0.0)
        await asyncio.to_thread(link.open, ELSEWHERE)
        link.send(wire.Claim(decode_ticket(params).ticket_id, []))
        assert await asyncio.to_thread(wait_until, lambda: nixl.num_served > 0)
        assert await asyncio.to_thread(wait_until, lambda: num_serving() == 0)
        link.connection.close()


def wait_until(is_so) -> bool:
    deadline_s = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    return is_so()


def num_serving() -> int:
    return sum(thread.name == "nixl-serve" for thread in threading.enumerate())


async def test_a_peer_that_is_gone_is_disconnected(nixl, memories) -> None:
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    async with fetching(settings=FORCED, nixl=on_demand(nixl)) as fetcher:
        async with serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server:
            await server.register(source)
            params = server.issue("r", [0], source, ttl_s=30, release=lambda: None)
            await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
        assert await asyncio.to_thread(nixl.disconnected.wait, 10)
        assert fetcher.statistics().num_peers == 0


@pytest.mark.parametrize("outcome", ["ERR", "raise"])
async def test_a_read_that_fails_is_a_transfer_error(nixl, memories, releases, outcome) -> None:
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    released = asyncio.Event()
    async with (
        serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server,
        fetching(settings=FORCED, nixl=on_demand(nixl)) as fetcher,
    ):
        await server.register(source)
        nixl.outcome = outcome
        params = server.issue("r", [0], source, ttl_s=30, release=released.set)
        with pytest.raises(TransferError, match="NIXL"):
            await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
        await asyncio.wait_for(released.wait(), 10)
        assert server.statistics().num_abandoned == 1


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_no_read_outlives_its_fetch(nixl, memories, how) -> None:
    """Neither a cancelled nor a late fetch returns before the network is through with its blocks."""
    nixl.num_polls = 1 << 62
    polled, clock = threading.Event(), ManualClock()
    nixl.on_poll = polled.set
    layout = KVLayout(fingerprint="x", block_size=1, block_bytes=4 << 20)
    source, own = host_memory(memories, 32, layout), host_memory(memories, 32, layout)
    async with (
        serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server,
        fetching(settings=FORCED, nixl=on_demand(nixl), now=clock) as fetcher,
    ):
        await server.register(source)
        params = server.issue("r", range(32), source, ttl_s=30, release=lambda: None)
        pairs = [(index, index) for index in range(32)]
        task = asyncio.create_task(fetcher.fetch(params, pairs, own, timeout_s=20))
        await asyncio.to_thread(polled.wait, 10)
        if how == "cancel":
            task.cancel()
        else:
            clock.advance(21)
        for _ in range(20):
            polled.clear()
            await asyncio.to_thread(polled.wait, 10)
        assert not task.done(), "requests are under way"
        assert len(nixl.handles) == nixl_room.MAX_IN_FLIGHT
        nixl.num_polls = 0
        with pytest.raises(asyncio.CancelledError if how == "cancel" else TransferError):
            await task
        assert len(nixl.handles) == nixl_room.MAX_IN_FLIGHT, "nothing new was begun"


async def test_a_peer_that_hangs_costs_the_agent_not_the_fetcher(nixl, memories) -> None:
    """What cannot be called back ends with the agent, and not before; the next fetch makes a new one."""
    polled, clock, settling = threading.Event(), ManualClock(), ManualClock()
    nixl.on_poll = polled.set
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    agents = AgentOnDemand(partial(NixlAgent, module=nixl.module(), monotonic_s=settling))
    async with (
        serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server,
        fetching(settings=FORCED, nixl=agents, now=clock, max_concurrent=1) as fetcher,
    ):
        await server.register(source)
        nixl.num_polls = 1 << 62
        params = server.issue("hangs", [0], source, ttl_s=30, release=lambda: None)
        task = asyncio.create_task(fetcher.fetch(params, [(0, 0)], own, timeout_s=20))
        await asyncio.to_thread(polled.wait, 10)
        clock.advance(21)
        for _ in range(20):
            polled.clear()
            await asyncio.to_thread(polled.wait, 10)
        assert not task.done()
        assert (len(nixl.agents), len(nixl.registered)) == (2, 2)
        settling.advance(nixl_room.SETTLE_LIMIT_S + 1)
        with pytest.raises(TransferError):
            await asyncio.wait_for(task, 10)
        assert (len(nixl.agents), len(nixl.registered)) == (1, 1), "only the server's are left"
        nixl.num_polls = 0
        params = server.issue("next", [0], source, ttl_s=30, release=lambda: None)
        assert (await fetcher.fetch(params, [(0, 1)], own, timeout_s=20)).back_end == "nixl"
    assert not nixl.registered


def test_the_last_read_of_a_lost_agent_ends_it(nixl, memories) -> None:
    """Others' reads go on to their end; until then the one that hangs does not return."""
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    peer = NixlAgent(module=nixl.module())
    ticket = peer.ticket(source)
    assert ticket is not None
    clock = ManualClock()
    agent = NixlAgent(module=nixl.module(), monotonic_s=clock)
    agent.register(own)
    nixl.num_polls, polled = 1 << 62, threading.Event()
    nixl.on_poll = polled.set
    given_up = threading.Event()

    def remaining_s() -> float:
        if given_up.is_set():
            raise TransferError("no time is left")
        return 1.0

    with ThreadPoolExecutor(2) as threads:
        lasting = threads.submit(agent.read, ticket, [0], own, [0], lambda: 1.0)
        hanging = threads.submit(agent.read, ticket, [1], own, [1], remaining_s)
        while len(nixl.handles) < 2 or not all(handle.num_asked for handle in nixl.handles):
            polled.wait(10)
        given_up.set()
        while not agent.is_closed:
            clock.advance(nixl_room.SETTLE_LIMIT_S + 1)
            polled.wait(10)
        with pytest.raises(TransferError, match="closed"):
            agent.read(ticket, [0], own, [0], remaining_s)
        assert not hanging.done()
        nixl.num_polls = 0
        lasting.result(10)
        with pytest.raises(TransferError, match="no time"):
            hanging.result(10)
    assert len(nixl.agents) == len(nixl.registered) == 1
    peer.close()


@pytest.mark.parametrize("pays", [True, False])
async def test_auto_takes_nixl_where_it_pays_and_memory_cannot_be_mapped(
    nixl, memories, monkeypatch, pays
) -> None:
    for room in ("offers", "exchange"):
        monkeypatch.setattr(f"dynamo_sdk.transfer.{room}.nixl_pays", lambda _: pays)
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    for host, expected in ((None, "shm"), (ELSEWHERE, "nixl" if pays else "tcp")):
        async with (
            serving(TCP, nixl=on_demand(nixl)) as server,
            fetching(host=host, nixl=on_demand(nixl)) as fetcher,
        ):
            await server.register(source)
            params = server.issue("r", [0], source, ttl_s=30, release=lambda: None)
            assert (await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)).back_end == expected


async def test_auto_streams_what_nixl_cannot_register(nixl, memories, monkeypatch) -> None:
    for room in ("offers", "exchange"):
        monkeypatch.setattr(f"dynamo_sdk.transfer.{room}.nixl_pays", lambda _: True)
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    async with (
        serving(TCP, nixl=on_demand(nixl)) as server,
        fetching(host=ELSEWHERE, nixl=on_demand(nixl)) as fetcher,
    ):
        await server.register(source)
        nixl.can_register = False
        params = server.issue("r", [0], source, ttl_s=30, release=lambda: None)
        assert (await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)).back_end == "tcp"
        other = host_memory(memories, 2)
        await server.register(other)
        params = server.issue("other", [0], other, ttl_s=30, release=lambda: None)
        assert decode_ticket(params).nixl is None


def test_nixl_pays_for_memory_on_a_gpu(memories) -> None:
    class OnGpu(CopiedMemory):
        span = MemorySpan(address=4096, size_bytes=8192, gpu=0)

    assert nixl_room.nixl_pays(OnGpu(host_memory(memories, 2)))


@pytest.mark.parametrize(
    ("back_end", "host", "found"),
    [
        ("stream", None, "tcp"),
        ("shm", None, "shm"),
        ("shm", ELSEWHERE, "cannot be mapped"),
        ("nixl", None, "offers no NIXL"),
    ],
)
async def test_a_setting_forces_one_way(memories, back_end, host, found) -> None:
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    settings = TransferSettings(back_end=back_end)
    async with serving(TCP) as server, fetching(host=host, settings=settings) as fetcher:
        params = server.issue("r", [0], source, ttl_s=30, release=lambda: None)
        if " " in found:
            with pytest.raises(TransferError, match=found):
                await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
        else:
            assert (await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)).back_end == found


async def test_a_nixl_that_must_be_there_and_is_not_is_a_config_error(nixl, memories) -> None:
    def absent() -> NixlAgent:
        raise ConfigError("NIXL is not usable here")

    source = host_memory(memories, 2)
    async with serving(TCP, settings=FORCED, nixl=AgentOnDemand(absent)) as server:
        with pytest.raises(ConfigError, match="back_end is nixl: NIXL is not usable here"):
            await server.register(source)
    async with serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server:
        with pytest.raises(ConfigError, match="do not lie in one piece"):
            await server.register(CopiedMemory(source))
    nixl.is_installed = False
    async with serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server:
        with pytest.raises(ConfigError, match="has no UCX back end"):
            await server.register(source)


async def test_blocks_outside_are_refused(nixl, memories) -> None:
    source, own = host_memory(memories, 2), host_memory(memories, 2)
    async with (
        serving(TCP, settings=FORCED, nixl=on_demand(nixl)) as server,
        fetching(settings=FORCED, nixl=on_demand(nixl)) as fetcher,
    ):
        await server.register(source)
        for held, own_id in (([2], 0), ([0], 2)):
            params = server.issue(f"r{own_id}", held, source, ttl_s=30, release=lambda: None)
            with pytest.raises(TransferError, match="outside"):
                await fetcher.fetch(params, [(0, own_id)], own, timeout_s=10)
        assert not nixl.handles


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), st.integers(1, 6))
def test_pieces_cover_all_blocks_in_runs(ids: list[tuple[int, int]], step: int) -> None:
    size = nixl_room.PIECE_BYTES // step
    pieces = list(nixl_room._pieces([there for there, _ in ids], [here for _, here in ids], size))
    found = []
    for number, piece in enumerate(pieces):
        runs = [tuple(map(int, run)) for run in zip(*piece, strict=True)]
        blocks = [
            (there // size + block, here // size + block)
            for there, here, num_bytes in runs
            for block in range(num_bytes // size)
        ]
        assert len(blocks) == min(step, len(ids) - number * step)
        for (there, here, num_bytes), following in itertools.pairwise(runs):
            assert following[:2] != (there + num_bytes, here + num_bytes), "these are one"
        found += blocks
    assert found == ids
