"""The real NIXL between two processes, over whatever UCX finds here. Needs the extra ``nixl``."""

from __future__ import annotations

import importlib.util

import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.transfer import BlockFetcher
from dynamo_sdk.types import KVLayout, TransferSettings

from .conftest import LAYOUT, content, host_memory, pattern
from .prefill_process import prefill_process
from .reader_process import reader_process

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="NIXL is not installed here"),
]

FORCED = TransferSettings(back_end="nixl", verify=True)
BIG = KVLayout(fingerprint="test/big", block_size=16, block_bytes=4 << 20)
TCP = "tcp:127.0.0.1:0"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


async def test_blocks_cross_processes(memories) -> None:
    held = [5, 6, 7, 40, 2, 63]
    own = host_memory(memories, 64)
    fetcher = BlockFetcher(settings=FORCED)
    with prefill_process([TCP], LAYOUT, 64, FORCED) as prefill:
        for number in range(3):
            params = await prefill.issue(f"r{number}", held)
            pairs = [(index, 10 * number + index) for index in range(len(held))]
            report = await fetcher.fetch(params, pairs, own, timeout_s=60)
            assert report.back_end == "nixl"
        assert await prefill.released() == {"r0": 1, "r1": 1, "r2": 1}
        await fetcher.close()
    for number in range(3):
        for index, block_id in enumerate(held):
            assert content(own, 10 * number + index) == pattern(block_id, LAYOUT.block_bytes)


async def test_several_requests_of_large_blocks(memories) -> None:
    """More bytes than one request takes, more requests than are under way at once."""
    own = host_memory(memories, 24, BIG)
    fetcher = BlockFetcher(settings=FORCED)
    with prefill_process([TCP], BIG, 24, FORCED) as prefill:
        params = await prefill.issue("r", list(range(24)))
        await fetcher.fetch(params, [(index, 23 - index) for index in range(24)], own, timeout_s=60)
        await fetcher.close()
    assert all(content(own, 23 - index) == pattern(index, BIG.block_bytes) for index in (0, 7, 23))


async def test_readers_that_are_killed_in_the_middle_cost_the_prefill_worker_nothing(memories) -> None:
    """A fetch has begun when its worker is killed; whether bytes are on their way by then is chance, so there
    are several."""
    held = list(range(24))
    own = host_memory(memories, 24, BIG)
    with prefill_process([TCP], BIG, 24, FORCED) as prefill:
        for number in range(3):
            with reader_process(BIG, 24, FORCED) as reader:
                reader.read(await prefill.issue(f"whole{number}", held))
                assert await reader.wait(60) == "read"
                reader.read(await prefill.issue(f"cut{number}", held))
                await prefill.released()  # a moment for it to begin
        fetcher = BlockFetcher(settings=FORCED)
        params = await prefill.issue("last", held)
        await fetcher.fetch(params, [(index, index) for index in held], own, timeout_s=60)
        await fetcher.close()
        released = await prefill.released()
        assert all(count == 1 for name, count in released.items() if not name.startswith("cut"))
        assert all(count <= 1 for count in released.values())
    assert content(own, 23) == pattern(23, BIG.block_bytes)


async def test_a_peer_that_was_killed_is_an_error(memories) -> None:
    own = host_memory(memories, 8)
    fetcher = BlockFetcher(settings=FORCED)
    with prefill_process([TCP], LAYOUT, 8, FORCED) as prefill:
        params = await prefill.issue("first", [1])
        await fetcher.fetch(params, [(0, 0)], own, timeout_s=60)
        params = await prefill.issue("second", [2])
        await prefill.kill()
        with pytest.raises(TransferError):
            await fetcher.fetch(params, [(0, 1)], own, timeout_s=60)
        await fetcher.close()
