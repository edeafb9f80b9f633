"""How much of the machine's own copying speed a hand-over of KV blocks keeps.

Two processes. The prefill one holds blocks and issues tickets; the decode one fetches them, in turn with
what the machine can do without us: a plain copy of as many bytes in one piece (``copy``), the same blocks
copied one by one between two memories of the same kind (``blocks``), one bare TCP connection (``bare``) and,
where it is installed, NIXL by itself on the same blocks (``alone``). All turns of a round are interleaved,
so that whatever disturbs the machine disturbs all of them; figures are medians, a ratio is the median of the
rounds' ratios. A fetch counts from the ticket to its acknowledged end. Blocks lie scattered over the pool,
as in a worker that has served for a while.

    python benchmarks/kv_transfer.py [--seconds 30] [--block-kib 64 4096] [--mib 4 64] [--only shm tcp nixl]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import multiprocessing
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
import uvloop

from dynamo_sdk.transfer import BlockFetcher, BlockServer, HostBlockMemory, HostIdentity
from dynamo_sdk.transfer.nixl import NixlAgent
from dynamo_sdk.transfer.ticket import decode_ticket
from dynamo_sdk.types import KVLayout, KVTransferParams, TransferSettings

ELSEWHERE = HostIdentity(machine_id="another", boot_id="another", pid_namespace="another")
NIXL = TransferSettings(back_end="nixl")
WAYS = ("shm", "tcp", "nixl")
NUM_WARM_UP = 2

Shape = tuple[int, int]
"""Bytes of a block, blocks of a fetch."""

Turn = Callable[[], Awaitable[float]]
"""Seconds it took."""


def layout_of(block_bytes: int) -> KVLayout:
    return KVLayout(fingerprint=f"benchmark/{block_bytes}", block_size=16, block_bytes=block_bytes)


def memory_of(shape: Shape) -> HostBlockMemory:
    """Twice as many blocks as are fetched; all pages are there."""
    memory = HostBlockMemory(layout_of(shape[0]), 2 * shape[1])
    memory.blocks[:] = np.arange(len(memory.blocks), dtype=np.uint8)[:, None]
    return memory


def scattered(num_blocks: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(2 * num_blocks), num_blocks)


async def prefill(orders: Connection, shapes: list[Shape], has_nixl: bool) -> None:
    """Answer ``(shape number)`` with a ticket, until told to stop."""
    server = BlockServer(settings=NIXL if has_nixl else None)
    folder = tempfile.TemporaryDirectory()
    await server.start([f"unix:{folder.name}/blocks", "tcp:127.0.0.1:0"])
    memories = [memory_of(shape) for shape in shapes]
    for memory in memories:
        await server.register(memory)
    if has_nixl:  # who reads without a claim has nobody else to answer when it connects
        server._offers.begin_serving(memories[0])
    number = 0
    while (shape := await asyncio.to_thread(orders.recv)) is not None:
        number += 1
        held = scattered(shapes[shape][1], shape)
        params = server.issue(f"r{number}", held, memories[shape], ttl_s=60, release=lambda: None)
        orders.send_bytes(msgspec.msgpack.encode(params))
    await server.close()
    folder.cleanup()


def prefill_process(orders: Connection, bare_port: int, shapes: list[Shape], has_nixl: bool) -> None:
    threading.Thread(target=bare_sender, args=(bare_port, shapes), daemon=True).start()
    uvloop.run(prefill(orders, shapes, has_nixl))


def bare_sender(port: int, shapes: list[Shape]) -> None:
    """Send as many bytes as asked for (eight bytes, little endian), for as long as the other side asks."""
    source = np.ones(max(size * count for size, count in shapes), dtype=np.uint8)
    with socket.create_connection(("127.0.0.1", port)) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while order := connected.recv(8):
            connected.sendall(memoryview(source)[: int.from_bytes(order, "little")])


@contextmanager
def running_prefill(shapes: list[Shape], has_nixl: bool) -> Iterator[tuple[Connection, socket.socket]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = context.Process(
            target=prefill_process, args=(theirs, listener.getsockname()[1], shapes, has_nixl), daemon=True
        )
        process.start()
        connected, _ = listener.accept()
    try:
        with connected:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield ours, connected
    finally:
        ours.send(None)
        process.join(10)


class Turns:
    """What is measured for one shape."""

    def __init__(self, orders: Connection, bare: socket.socket, number: int, shape: Shape) -> None:
        self._orders, self._bare, self._number = orders, bare, number
        size, count = shape
        self.num_bytes = size * count
        self._memory, self._other = memory_of(shape), memory_of(shape)
        self._own_ids, self._held = scattered(count, 99), scattered(count, number)
        self._private = np.ones((2, self.num_bytes), dtype=np.uint8)

    async def copy(self) -> float:
        begin_s = time.perf_counter()
        np.copyto(self._private[0], self._private[1])
        return time.perf_counter() - begin_s

    async def blocks(self) -> float:
        ours, theirs = self._memory.blocks, self._other.blocks
        begin_s = time.perf_counter()
        for own_id, held in zip(self._own_ids, self._held, strict=True):
            np.copyto(ours[own_id], theirs[held])
        return time.perf_counter() - begin_s

    async def bare(self) -> float:
        target = memoryview(self._private[0])
        begin_s = time.perf_counter()
        self._bare.sendall(len(target).to_bytes(8, "little"))
        while target:
            target = target[self._bare.recv_into(target) :]
        return time.perf_counter() - begin_s

    def alone(self) -> Turn:
        """NIXL with the same blocks in one request, by an agent of its own."""
        ticket = decode_ticket(self._ticket()).nixl
        assert ticket is not None
        ours = NixlAgent()
        ours.register(self._memory)
        agent: Any = ours._agent
        agent.add_remote_agent(ticket.metadata)
        size, base = self._memory.layout.block_bytes, self._memory.blocks.ctypes.data
        local = [(base + own_id * size, size, 0) for own_id in self._own_ids]
        remote = [(ticket.address + held * size, size, 0) for held in self._held]

        async def turn() -> float:
            begin_s = time.perf_counter()
            handle = agent.initialize_xfer(
                "READ",
                agent.get_xfer_descs(local, "DRAM"),
                agent.get_xfer_descs(remote, "DRAM"),
                ticket.agent,
            )
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            assert state == "DONE"
            agent.release_xfer_handle(handle)
            return time.perf_counter() - begin_s

        return turn

    def fetch(self, fetcher: BlockFetcher, back_end: str) -> Turn:
        pairs = list(enumerate(self._own_ids))

        async def turn() -> float:
            params = self._ticket()
            begin_s = time.perf_counter()
            report = await fetcher.fetch(params, pairs, self._memory, timeout_s=30)
            assert report.back_end == back_end
            return time.perf_counter() - begin_s

        return turn

    def check(self) -> None:
        """The blocks are there: each ends with the last byte of its number."""
        for own_id, held in zip(self._own_ids, self._held, strict=True):
            assert self._memory.blocks[own_id, -1] == held % 256, "wrong blocks"

    def _ticket(self) -> KVTransferParams:
        self._orders.send(self._number)
        return msgspec.msgpack.decode(self._orders.recv_bytes(), type=KVTransferParams)


async def measure(turns: Turns, ways: list[str], seconds: float) -> None:
    fetchers = {
        "shm": BlockFetcher(),
        "tcp": BlockFetcher(host=ELSEWHERE, settings=TransferSettings(back_end="stream")),
        "nixl": BlockFetcher(host=ELSEWHERE, settings=NIXL),
    }
    plan: dict[str, Turn] = {}
    if "shm" in ways:
        plan |= {"copy": turns.copy, "blocks": turns.blocks, "shm": turns.fetch(fetchers["shm"], "shm")}
    if "tcp" in ways:
        plan |= {"bare": turns.bare, "tcp": turns.fetch(fetchers["tcp"], "tcp")}
    if "nixl" in ways:
        plan |= {"alone": turns.alone(), "nixl": turns.fetch(fetchers["nixl"], "nixl")}
    times: dict[str, list[float]] = {name: [] for name in plan}
    ends_s, num_rounds = time.monotonic() + seconds, 0
    while time.monotonic() < ends_s or num_rounds < 5 + NUM_WARM_UP:
        num_rounds += 1
        for name, turn in plan.items():
            times[name].append(await turn())
    turns.check()
    for fetcher in fetchers.values():
        await fetcher.close()
    show(turns, {name: values[NUM_WARM_UP:] for name, values in times.items()})


def show(turns: Turns, times: dict[str, list[float]]) -> None:
    against = {"shm": ("copy", "blocks"), "tcp": ("bare",), "nixl": ("alone",)}
    for name, values in times.items():
        ratios = [
            f"{statistics.median(b / a for a, b in zip(values, times[base], strict=True)):.2f} of {base}"
            for base in against.get(name, ())
        ]
        rate = turns.num_bytes / statistics.median(values) / 1e9
        print(f"  {name:8}{rate:7.2f} GB/s {1e3 * statistics.median(values):9.2f} ms   {', '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="for all shapes together")
    parser.add_argument("--block-kib", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--mib", type=int, nargs="+", default=[4, 64], help="bytes of a fetch")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    has_nixl = "nixl" in arguments.only and importlib.util.find_spec("nixl") is not None
    ways = [way for way in arguments.only if way != "nixl" or has_nixl]
    shapes = [
        (block_kib << 10, max(1, (mib << 10) // block_kib))
        for block_kib in arguments.block_kib
        for mib in arguments.mib
    ]
    with running_prefill(shapes, has_nixl) as (orders, bare):
        for number, shape in enumerate(shapes):
            print(f"{shape[1]} blocks of {shape[0] >> 10} KiB")
            turns = Turns(orders, bare, number, shape)
            uvloop.run(measure(turns, ways, arguments.seconds / len(shapes)))


if __name__ == "__main__":
    main()
