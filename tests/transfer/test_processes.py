"""Hand-over between two real processes, and what is left of it when one is killed."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.transfer import BlockFetcher, BlockServer, HostBlockMemory, HostIdentity
from dynamo_sdk.transfer.ticket import decode_ticket
from dynamo_sdk.types import KVLayout

from .conftest import LAYOUT, content, host_memory, pattern
from .prefill_process import prefill_process

pytestmark = pytest.mark.anyio

ELSEWHERE = HostIdentity(machine_id="another", boot_id="another", pid_namespace="another")
BIG = KVLayout(fingerprint="test/big", block_size=16, block_bytes=1 << 20)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}  # what workers run on; starting processes twice is slow


class GatedMemory(HostBlockMemory):
    """Host memory that others cannot map and that stops in its first write until told to go on."""

    shared_region = None

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        super().__init__(layout, num_blocks)
        self.entered, self.gate = threading.Event(), threading.Event()

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        self.entered.set()
        assert self.gate.wait(20)
        super().write(block_ids, data)


def mapped_inodes() -> set[int]:
    return {int(line.split()[4]) for line in Path("/proc/self/maps").read_text().splitlines()}


@pytest.mark.parametrize(
    ("address", "host", "back_end"),
    [("unix:{}/s", None, "shm"), ("tcp:127.0.0.1:0", None, "shm"), ("tcp:127.0.0.1:0", ELSEWHERE, "tcp")],
)
async def test_blocks_cross_processes(tmp_path, memories, address, host, back_end) -> None:
    own = host_memory(memories, 64)
    held = [5, 6, 7, 40, 2, 63]
    fetcher = BlockFetcher(host=host)
    with prefill_process([address.format(tmp_path)], LAYOUT, 64) as prefill:
        for number in range(3):
            params = await prefill.issue(f"r{number}", held)
            pairs = [(index, 10 * number + index) for index in range(len(held))]
            report = await fetcher.fetch(params, pairs, own, timeout_s=20)
            assert report.back_end == back_end
        assert await prefill.released() == {"r0": 1, "r1": 1, "r2": 1}
        await fetcher.close()
    for number in range(3):
        for index, block_id in enumerate(held):
            assert content(own, 10 * number + index) == pattern(block_id, LAYOUT.block_bytes)


@pytest.mark.parametrize("host", [None, ELSEWHERE])
async def test_a_peer_killed_in_the_middle_is_an_error(memories, host) -> None:
    own = GatedMemory(BIG, 32)
    memories.callback(own.close)
    fetcher = BlockFetcher(host=host)
    with prefill_process(["tcp:127.0.0.1:0"], BIG, 32) as prefill:
        params = await prefill.issue("r", list(range(32)))
        pairs = [(index, index) for index in range(32)]
        task = asyncio.create_task(fetcher.fetch(params, pairs, own, timeout_s=60))
        await asyncio.to_thread(own.entered.wait, 20)
        await prefill.kill()
        own.gate.set()
        with pytest.raises(TransferError):
            await asyncio.wait_for(task, 10)
        assert fetcher.statistics().num_peers == 0
    region = decode_ticket(params).region
    assert region is not None
    assert region.inode not in mapped_inodes()
    await fetcher.close()


async def test_the_memory_of_a_dead_peer_is_let_go_without_a_further_fetch(tmp_path, memories) -> None:
    fetcher = BlockFetcher()
    with prefill_process([f"unix:{tmp_path}/s"], LAYOUT, 8) as prefill:
        params = await prefill.issue("r", [0, 1])
        region = decode_ticket(params).region
        assert region is not None
        await fetcher.fetch(params, [(0, 0)], host_memory(memories, 2), timeout_s=20)
        assert region.inode in mapped_inodes()
        await prefill.kill()
    for _ in range(3):  # rounds of the loop, in one of which it sees the connection end
        await asyncio.sleep(0)
    assert fetcher.statistics().num_peers == 0
    assert region.inode not in mapped_inodes()
    await fetcher.close()


async def test_a_restarted_peer_is_not_mistaken_for_its_predecessor(tmp_path, memories) -> None:
    own = host_memory(memories, 2)
    fetcher = BlockFetcher()
    address = f"unix:{tmp_path}/s"
    with prefill_process([address], LAYOUT, 8) as prefill:
        stale = await prefill.issue("r", [0, 1])
        await prefill.kill()
    # The socket file is still there; its successor takes it over.
    with prefill_process([address], LAYOUT, 8) as prefill:
        with pytest.raises(TransferError):
            await fetcher.fetch(stale, [(0, 0)], own, timeout_s=20)
        fresh = await prefill.issue("r", [3, 4])
        await fetcher.fetch(fresh, [(1, 1)], own, timeout_s=20)
    assert content(own, 1) == pattern(4, LAYOUT.block_bytes)
    await fetcher.close()


async def test_the_pool_is_free_after_a_decode_worker_was_killed(tmp_path, memories) -> None:
    """The killed process is the fetching one, here: its kernel closes the connection, nothing else."""
    released = asyncio.Event()
    server = BlockServer()
    await server.start([f"unix:{tmp_path}/s"])
    params = server.issue("r", [0], host_memory(memories, 1), ttl_s=600, release=released.set)
    script = (
        "import asyncio, sys, msgspec\n"
        "from dynamo_sdk.transfer import BlockFetcher\n"
        "from dynamo_sdk.types import KVTransferParams\n"
        "from tests.transfer.test_processes import GatedMemory, LAYOUT\n"
        "params = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=KVTransferParams)\n"
        "class Telling(GatedMemory):\n"
        "    def write(self, *args):\n"
        "        print('writing', flush=True)\n"
        "        super().write(*args)\n"
        "async def main():\n"
        "    await BlockFetcher().fetch(params, [(0, 0)], Telling(LAYOUT, 1), timeout_s=600)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        msgspec.msgpack.encode(params).hex(),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 30) == b"writing\n"
    assert not released.is_set()
    child.kill()
    await child.wait()
    await asyncio.wait_for(released.wait(), 10)
    assert server.statistics().num_abandoned == 1
    await server.close()
