"""One large fetch over several connections: all blocks arrive, and one that fails ends all."""

from __future__ import annotations

import asyncio

import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.transfer import BlockServer, fetch
from dynamo_sdk.transfer.threads import run_together
from dynamo_sdk.types import TransferSettings

from .conftest import content, fill, host_memory, pattern
from .test_fetch import CopiedMemory, fetching, serving

pytestmark = pytest.mark.anyio

THREE = TransferSettings(back_end="stream", connections=3)


@pytest.fixture(autouse=True)
def every_byte_is_worth_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MIN_BYTES_PER_CONNECTION", 1)


@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize(("num_blocks", "num_used"), [(1, 1), (2, 2), (50, 3)])
async def test_every_connection_brings_a_share(memories, releases, num_blocks, num_used, is_mapped) -> None:
    source, inner = host_memory(memories, 64), host_memory(memories, 64)
    fill(source, 64)
    own = inner if is_mapped else CopiedMemory(inner)
    held = [(7 * number) % 64 for number in range(num_blocks)]
    pairs = [(index, (5 * index) % 64) for index in range(num_blocks)]
    settings = TransferSettings(back_end="stream", connections=3, verify=True)
    async with serving("tcp:127.0.0.1:0") as server, fetching(settings=settings) as fetcher:
        for request_id in ("a", "b"):  # the second time over the same connections
            params = server.issue(request_id, held, source, ttl_s=30, release=releases.of(request_id))
            await fetcher.fetch(params, pairs, own, timeout_s=10)
            assert fetcher.statistics().num_idle_connections == num_used
    assert releases.counts == {"a": 1, "b": 1}
    for index, own_id in pairs:
        assert content(inner, own_id) == pattern(held[index], 4096)


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_all_end_together(memories, how) -> None:
    source = CopiedMemory(host_memory(memories, 64))
    source.gate.clear()
    released = asyncio.Event()
    async with serving("tcp:127.0.0.1:0") as server, fetching(settings=THREE) as fetcher:
        params = server.issue("r", range(64), source, ttl_s=60, release=released.set)
        pairs = [(index, index) for index in range(64)]
        task = asyncio.create_task(fetcher.fetch(params, pairs, host_memory(memories, 64), timeout_s=20))
        await asyncio.to_thread(source.entered.wait, 10)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)
        else:
            closing = asyncio.create_task(server.close())
            with pytest.raises(TransferError):
                await asyncio.wait_for(task, 10)
            source.gate.set()
            await closing
        source.gate.set()
        await asyncio.wait_for(released.wait(), 10)
        assert fetcher.statistics().num_peers == 0


async def test_nobody_joins_what_is_not_being_fetched(memories, releases, monkeypatch) -> None:
    """Whatever ends the ticket in between: the blocks of the others count for nothing."""
    source, own = host_memory(memories, 8), host_memory(memories, 8)
    join = BlockServer._serve_join

    async def after_the_end(server, connected, message):
        server.revoke("r")
        await join(server, connected, message)

    monkeypatch.setattr(BlockServer, "_serve_join", after_the_end)
    async with serving("tcp:127.0.0.1:0") as server, fetching(settings=THREE) as fetcher:
        params = server.issue("r", range(8), source, ttl_s=30, release=releases.of("r"))
        with pytest.raises(TransferError):
            await fetcher.fetch(params, [(index, index) for index in range(8)], own, timeout_s=10)
    assert releases.counts == {"r": 1}


def test_the_first_error_is_told_and_the_others_are_stopped() -> None:
    stopped: list[str] = []

    def fails() -> None:
        raise OSError("first")

    def is_stopped() -> None:
        while not stopped:
            pass
        raise OSError("stopped")

    with pytest.raises(OSError, match="first"):
        run_together([is_stopped, fails, is_stopped], lambda: stopped.append("now"))
    done: list[int] = []
    run_together([lambda: done.append(1), lambda: done.append(2)], lambda: stopped.append("never"))
    assert sorted(done) == [1, 2]
    assert "never" not in stopped
