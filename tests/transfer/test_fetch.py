"""Server and fetcher in one process, over real sockets; mapping works within a process as well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import ExitStack, asynccontextmanager

import msgspec
import pytest

from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.interfaces import BlockMemory, SharedRegion
from dynamo_sdk.transfer import BlockFetcher, BlockServer, HostBlockMemory, HostIdentity, host_identity
from dynamo_sdk.types import KVLayout, KVTransferParams

from .conftest import ManualClock, content, fill, host_memory, pattern

pytestmark = pytest.mark.anyio

ELSEWHERE = HostIdentity(machine_id="another", boot_id="another", pid_namespace="another")
NEIGHBOUR = HostIdentity(
    machine_id=host_identity().machine_id, boot_id=host_identity().boot_id, pid_namespace="container"
)


class CopiedMemory(BlockMemory):
    """Blocks that cannot be mapped, as on a GPU; every access waits for ``gate``."""

    def __init__(self, inner: HostBlockMemory) -> None:
        self.inner = inner
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.num_busy = 0

    @property
    def layout(self) -> KVLayout:
        return self.inner.layout

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        self._pass()
        self.inner.read(block_ids, into)

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        self.num_busy += 1
        self._pass()
        self.inner.write(block_ids, data)
        self.num_busy -= 1

    def _pass(self) -> None:
        self.entered.set()
        assert self.gate.wait(20)


class SharedCopiedMemory(CopiedMemory):
    @property
    def shared_region(self) -> SharedRegion | None:
        return self.inner.shared_region


@asynccontextmanager
async def serving(*addresses: str, **options):
    server = BlockServer(**options)
    await server.start(addresses)
    try:
        yield server
    finally:
        await server.close()


async def claim_arrived(server: BlockServer) -> None:
    """The copy starts while the claim travels; some tests need the claim to be first."""
    async with asyncio.timeout(10):
        while not server.statistics().num_fetching:  # noqa: ASYNC110  the server offers no event for it
            await asyncio.sleep(0)


@asynccontextmanager
async def fetching(**options):
    fetcher = BlockFetcher(**options)
    try:
        yield fetcher
    finally:
        await fetcher.close()


@pytest.mark.parametrize(
    ("address", "host", "back_end"),
    [
        ("unix:{}", None, "shm"),
        ("tcp:127.0.0.1:0", None, "shm"),
        ("unix:{}", NEIGHBOUR, "unix"),
        ("tcp:127.0.0.1:0", ELSEWHERE, "tcp"),
    ],
)
@pytest.mark.parametrize("source_kind", [HostBlockMemory, CopiedMemory])
@pytest.mark.parametrize("own_kind", [HostBlockMemory, CopiedMemory])
async def test_only_the_wanted_blocks_move(
    tmp_path, memories, releases, address, host, back_end, source_kind, own_kind
) -> None:
    source, own = host_memory(memories, 32), host_memory(memories, 32)
    fill(source, 32)
    fill(own, 32, "own")
    server_memory = source if source_kind is HostBlockMemory else CopiedMemory(source)
    own_memory = own if own_kind is HostBlockMemory else CopiedMemory(own)
    if server_memory is not source and back_end == "shm":
        back_end = "unix" if address.startswith("unix") else "tcp"
    held = [3, 4, 5, 9, 30, 31, 0]
    pairs = [(index, own_id) for index, own_id in zip(range(2, 7), [7, 8, 1, 0, 20], strict=True)]
    async with serving(address.format(tmp_path / "s")) as server, fetching(host=host) as fetcher:
        params = server.issue("r", held, server_memory, ttl_s=30, release=releases.of("r"))
        report = await fetcher.fetch(params, pairs, own_memory, timeout_s=10)
        assert releases.counts == {"r": 1}
        assert (report.back_end, report.num_blocks, report.num_bytes) == (back_end, 5, 5 * 4096)
        assert server.statistics().num_live_tickets == 0
    written = {own_id: held[index] for index, own_id in pairs}
    for block_id in range(32):
        expected = pattern(written[block_id], 4096) if block_id in written else pattern(block_id, 4096, "own")
        assert content(own, block_id) == expected
    assert releases.counts == {"r": 1}


async def test_nothing_to_move_still_ends_the_ticket(socket_path, memories, releases) -> None:
    memory = host_memory(memories, 4)
    async with serving(socket_path) as server, fetching() as fetcher:
        params = server.issue("r", [0, 1], memory, ttl_s=30, release=releases.of("r"))
        assert (await fetcher.fetch(params, [], memory, timeout_s=10)).num_bytes == 0
        assert releases.counts == {"r": 1}


async def test_a_ticket_works_once_and_the_connection_is_kept(socket_path, memories, releases) -> None:
    memory, own = host_memory(memories, 4), host_memory(memories, 4)
    async with serving(socket_path) as server, fetching() as fetcher:
        params = server.issue("r", [0, 1], memory, ttl_s=30, release=releases.of("r"))
        await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
        with pytest.raises(TicketUnknown, match="already used"):
            await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
        again = server.issue("r", [0, 1], memory, ttl_s=30, release=releases.of("r2"))
        await fetcher.fetch(again, [(0, 0)], own, timeout_s=10)
        assert server.statistics().num_connections == 1
        assert releases.counts == {"r": 1, "r2": 1}


@pytest.mark.parametrize("host", [None, ELSEWHERE])
async def test_refusals_are_typed(memories, releases, host) -> None:
    clock = ManualClock()
    memory, own = host_memory(memories, 4), host_memory(memories, 4)
    fill(memory, 4)
    async with serving("tcp:127.0.0.1:0", now=clock) as server, fetching(host=host) as fetcher:
        expired = server.issue("late", [0], memory, ttl_s=30, release=releases.of("late"))
        revoked = server.issue("gone", [1], memory, ttl_s=60, release=releases.of("gone"))
        clock.advance(30)
        server.revoke("gone")
        server.revoke("gone")
        with pytest.raises(TicketExpired):
            await fetcher.fetch(expired, [(0, 0)], own, timeout_s=10)
        with pytest.raises(TicketUnknown, match="revoked"):
            await fetcher.fetch(revoked, [(0, 0)], own, timeout_s=10)
        with pytest.raises(TicketUnknown, match="never issued"):
            await fetcher.fetch(with_ticket_id(revoked, b"x" * 24), [(0, 0)], own, timeout_s=10)
        assert releases.counts == {"late": 1, "gone": 1}
    if host is ELSEWHERE:
        assert not own.blocks.any(), "a refusal is followed by no bytes"


def with_ticket_id(params: KVTransferParams, ticket_id: bytes) -> KVTransferParams:
    payload = msgspec.msgpack.decode(params.payload)
    payload["ticket_id"] = ticket_id
    return KVTransferParams(connector="direct", payload=msgspec.msgpack.encode(payload), ttl_s=30)


async def test_expiry_needs_no_visitor(socket_path, memories) -> None:
    released = asyncio.Event()
    async with serving(socket_path) as server:
        server.issue("r", [0], host_memory(memories, 1), ttl_s=0.02, release=released.set)
        await asyncio.wait_for(released.wait(), 10)
        assert server.statistics().num_expired == 1


async def test_a_live_ticket_is_not_replaced(socket_path, memories, releases) -> None:
    memory = host_memory(memories, 1)
    async with serving(socket_path) as server:
        server.issue("r", [0], memory, ttl_s=30, release=releases.of("first"))
        with pytest.raises(TransferError, match="revoke"):
            server.issue("r", [0], memory, ttl_s=30, release=releases.of("second"))
    assert releases.counts == {"first": 1, "second": 0}


async def test_layouts_must_be_equal(socket_path, memories, releases) -> None:
    other = KVLayout(fingerprint="test/f16/2x4", block_size=16, block_bytes=4096)
    async with serving(socket_path) as server, fetching() as fetcher:
        params = server.issue("r", [0], host_memory(memories, 1), ttl_s=30, release=releases.of("r"))
        with pytest.raises(TransferError, match="layout"):
            await fetcher.fetch(params, [(0, 0)], host_memory(memories, 1, other), timeout_s=10)
        assert server.statistics().num_connections == 0


@pytest.mark.parametrize("pair", [(1, 0), (-1, 0), (0, 1), (0, -1)])
@pytest.mark.parametrize("host", [None, NEIGHBOUR])
async def test_blocks_outside_are_refused(socket_path, memories, releases, pair, host) -> None:
    async with serving(socket_path) as server, fetching(host=host) as fetcher:
        params = server.issue("r", [0], host_memory(memories, 2), ttl_s=30, release=releases.of("r"))
        with pytest.raises(TransferError):
            await fetcher.fetch(params, [pair], host_memory(memories, 1), timeout_s=10)


@pytest.mark.parametrize("how", ["revoke", "expire"])
async def test_a_ticket_that_ends_during_the_copy_spoils_it(socket_path, memories, releases, how) -> None:
    clock = ManualClock()
    source, own = host_memory(memories, 2), CopiedMemory(host_memory(memories, 2))
    own.gate.clear()
    async with serving(socket_path, now=clock, lease_s=10) as server, fetching() as fetcher:
        params = server.issue("r", [0], source, ttl_s=5, release=releases.of("r"))
        task = asyncio.create_task(fetcher.fetch(params, [(0, 0)], own, timeout_s=20))
        await asyncio.to_thread(own.entered.wait, 10)
        await claim_arrived(server)
        if how == "revoke":
            server.revoke("r")
        else:
            clock.advance(6)
            server.sweep()
            assert releases.counts == {"r": 0}, "past its ttl, but a reader is at work"
            clock.advance(4)
            server.sweep()
        assert releases.counts == {"r": 1}
        own.gate.set()
        with pytest.raises(TicketUnknown if how == "revoke" else TicketExpired):
            await task
    assert releases.counts == {"r": 1}


@pytest.mark.parametrize("num_cancels", [1, 3])
async def test_a_cancelled_fetch_leaves_no_writer_behind(socket_path, memories, num_cancels) -> None:
    released = asyncio.Event()
    source, own = host_memory(memories, 2), CopiedMemory(host_memory(memories, 2))
    own.gate.clear()
    async with serving(socket_path) as server, fetching() as fetcher:
        params = server.issue("r", [0], source, ttl_s=60, release=released.set)
        task = asyncio.create_task(fetcher.fetch(params, [(0, 0)], own, timeout_s=20))
        await asyncio.to_thread(own.entered.wait, 10)
        await claim_arrived(server)
        for _ in range(num_cancels):
            task.cancel()
            # The prefill side is free at once, although our own thread is still inside ``write``.
            await asyncio.wait_for(released.wait(), 10)
        assert not task.done()
        assert own.num_busy == 1
        own.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert own.num_busy == 0
        assert server.statistics().num_abandoned == 1


async def test_cancelling_a_stream_wakes_both_sides(memories) -> None:
    layout = KVLayout(fingerprint="big", block_size=16, block_bytes=1 << 20)
    source = CopiedMemory(host_memory(memories, 64, layout))
    released = asyncio.Event()
    async with serving("tcp:127.0.0.1:0") as server, fetching() as fetcher:
        source.gate.clear()
        params = server.issue("r", range(64), source, ttl_s=60, release=released.set)
        pairs = [(index, index) for index in range(64)]
        task = asyncio.create_task(
            fetcher.fetch(params, pairs, host_memory(memories, 64, layout), timeout_s=20)
        )
        await asyncio.to_thread(source.entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        source.gate.set()
        await asyncio.wait_for(released.wait(), 10)
        assert fetcher.statistics().num_peers == 0


async def test_closing_the_server_ends_a_stream(memories, releases) -> None:
    source = CopiedMemory(host_memory(memories, 2))
    source.gate.clear()
    async with serving("tcp:127.0.0.1:0") as server, fetching() as fetcher:
        params = server.issue("r", [0, 1], source, ttl_s=60, release=releases.of("r"))
        fetch = fetcher.fetch(params, [(0, 0), (1, 1)], host_memory(memories, 2), timeout_s=20)
        task = asyncio.create_task(fetch)
        await asyncio.to_thread(source.entered.wait, 10)
        closing = asyncio.create_task(server.close())
        with pytest.raises(TransferError):
            await asyncio.wait_for(task, 10)
        source.gate.set()
        await asyncio.wait_for(closing, 10)
    assert releases.counts == {"r": 1}


async def test_a_deadline_ends_a_fetch_from_a_stuck_server(memories, releases) -> None:
    source = CopiedMemory(host_memory(memories, 1))
    source.gate.clear()
    try:
        async with serving("tcp:127.0.0.1:0") as server, fetching() as fetcher:
            params = server.issue("r", [0], source, ttl_s=60, release=releases.of("r"))
            with pytest.raises(TransferError, match="in time"):
                await fetcher.fetch(params, [(0, 0)], host_memory(memories, 1), timeout_s=0.05)
            source.gate.set()
    finally:
        source.gate.set()
    assert releases.counts == {"r": 1}


async def test_a_memory_that_fails_to_write_is_a_transfer_error(socket_path, memories) -> None:
    released = asyncio.Event()

    class Broken(CopiedMemory):
        def write(self, block_ids: Sequence[int], data: memoryview) -> None:
            raise RuntimeError("CUDA error")

    async with serving(socket_path) as server, fetching() as fetcher:
        params = server.issue("r", [0], host_memory(memories, 1), ttl_s=60, release=released.set)
        with pytest.raises(TransferError, match="CUDA error"):
            await fetcher.fetch(params, [(0, 0)], Broken(host_memory(memories, 1)), timeout_s=10)
        await asyncio.wait_for(released.wait(), 10)


async def test_many_fetches_at_once(socket_path, memories: ExitStack, releases) -> None:
    source, own = host_memory(memories, 256), host_memory(memories, 256)
    fill(source, 256)
    async with (
        serving(socket_path, "tcp:127.0.0.1:0") as server,
        fetching(max_concurrent=4, max_idle_per_peer=2) as mapping,
        fetching(host=ELSEWHERE, max_concurrent=4) as streaming,
    ):
        tasks = []
        for number in range(64):
            request_id = f"r{number}"
            held = range(number * 4, number * 4 + 4)
            params = server.issue(request_id, held, source, ttl_s=60, release=releases.of(request_id))
            pairs = [(index, block_id) for index, block_id in enumerate(held)]
            fetcher = mapping if number % 2 else streaming
            tasks.append(asyncio.create_task(fetcher.fetch(params, pairs, own, timeout_s=30)))
        reports = await asyncio.gather(*tasks)
        assert {report.back_end for report in reports} == {"shm", "tcp"}
        assert mapping.statistics().num_idle_connections <= 2
        assert mapping.statistics().num_fetching == mapping.statistics().num_waiting == 0
    assert (source.blocks == own.blocks).all()
    assert set(releases.counts.values()) == {1}


async def test_a_full_line_ends_in_time(socket_path, memories, releases) -> None:
    source, own = host_memory(memories, 1), CopiedMemory(host_memory(memories, 1))
    own.gate.clear()
    async with serving(socket_path) as server, fetching(max_concurrent=1) as fetcher:
        first = server.issue("a", [0], source, ttl_s=60, release=releases.of("a"))
        second = server.issue("b", [0], source, ttl_s=60, release=releases.of("b"))
        task = asyncio.create_task(fetcher.fetch(first, [(0, 0)], own, timeout_s=20))
        await asyncio.to_thread(own.entered.wait, 10)
        with pytest.raises(TransferError, match="no turn"):
            await fetcher.fetch(second, [(0, 0)], own, timeout_s=0.02)
        own.gate.set()
        await task


async def test_a_callback_that_fails_harms_nobody(socket_path, memories, caplog) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    memory = host_memory(memories, 1)
    async with serving(socket_path) as server, fetching() as fetcher:
        params = server.issue("r", [0], memory, ttl_s=60, release=fail)
        await fetcher.fetch(params, [(0, 0)], host_memory(memories, 1), timeout_s=10)
    assert "boom" in caplog.text


async def test_no_server_there(tmp_path, memories) -> None:
    memory = host_memory(memories, 1)
    async with serving(f"unix:{tmp_path}/s") as server:
        params = server.issue("r", [0], memory, ttl_s=60, release=lambda: None)
    async with fetching() as fetcher:
        with pytest.raises(TransferError, match="no block server answers"):
            await fetcher.fetch(params, [(0, 0)], memory, timeout_s=10)
        assert fetcher.statistics().num_peers == 0
