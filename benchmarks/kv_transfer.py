"""How much of the machine's own copying speed a hand-over of KV blocks keeps.

Two processes. The prefill one holds blocks and issues tickets; the decode one fetches them, in turn with a
plain memory copy and a bare socket copy of the same bytes, so that whatever disturbs the machine disturbs
all of them. Figures are medians; a fetch counts from the ticket to its acknowledged end. Blocks lie
scattered over the pool, as they do in a worker that has served for a while.

    python benchmarks/transfer.py [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec
import numpy as np
import uvloop

from dynamo_sdk.transfer import BlockFetcher, BlockServer, HostBlockMemory, HostIdentity
from dynamo_sdk.types import KVLayout, KVTransferParams

ELSEWHERE = HostIdentity(machine_id="another", boot_id="another", pid_namespace="another")
SHAPES = ((64 << 10, 64), (64 << 10, 512), (4 << 20, 8), (4 << 20, 32))
"""(bytes of a block, blocks of a fetch)"""


def layout_of(block_bytes: int) -> KVLayout:
    return KVLayout(fingerprint=f"benchmark/{block_bytes}", block_size=16, block_bytes=block_bytes)


def scattered(num_blocks: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(2 * num_blocks), num_blocks)


async def prefill(orders: Connection) -> None:
    """Answer ``(shape number)`` with a ticket, until told to stop."""
    server = BlockServer()
    folder = tempfile.TemporaryDirectory()
    await server.start([f"unix:{folder.name}/blocks", "tcp:127.0.0.1:0"])
    memories = [HostBlockMemory(layout_of(size), 2 * count) for size, count in SHAPES]
    for memory in memories:
        memory.blocks[:] = np.arange(len(memory.blocks), dtype=np.uint8)[:, None]
    held = [scattered(count, seed) for seed, (_, count) in enumerate(SHAPES)]
    number = 0
    while (shape := await asyncio.to_thread(orders.recv)) is not None:
        number += 1
        params = server.issue(f"r{number}", held[shape], memories[shape], ttl_s=60, release=lambda: None)
        orders.send_bytes(msgspec.msgpack.encode(params))
    await server.close()
    folder.cleanup()


def prefill_process(orders: Connection, bare_port: int) -> None:
    threading.Thread(target=bare_sender, args=(bare_port,), daemon=True).start()
    uvloop.run(prefill(orders))


def bare_sender(port: int) -> None:
    """Send as many bytes as asked for (eight bytes, little endian), for as long as the other side asks."""
    source = np.ones(max(size * count for size, count in SHAPES), dtype=np.uint8)
    with socket.create_connection(("127.0.0.1", port)) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while order := connected.recv(8):
            connected.sendall(memoryview(source)[: int.from_bytes(order, "little")])


def bare_receive(connected: socket.socket, target: memoryview) -> None:
    connected.sendall(len(target).to_bytes(8, "little"))
    while target:
        target = target[connected.recv_into(target) :]


@contextmanager
def running_prefill() -> Iterator[tuple[Connection, socket.socket]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = context.Process(
            target=prefill_process, args=(theirs, listener.getsockname()[1]), daemon=True
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


async def measure(orders: Connection, bare: socket.socket, shape: int, seconds: float) -> None:
    size, count = SHAPES[shape]
    memory = HostBlockMemory(layout_of(size), 2 * count)
    own_ids = scattered(count, 99)
    pairs = list(enumerate(own_ids))
    private = np.ones((2, count, size), dtype=np.uint8)
    flat = memoryview(private[0]).cast("B")
    times: dict[str, list[float]] = {"memory": [], "shm": [], "bare": [], "tcp": []}
    mapping, streaming = BlockFetcher(), BlockFetcher(host=ELSEWHERE)

    def ticket() -> KVTransferParams:
        orders.send(shape)
        return msgspec.msgpack.decode(orders.recv_bytes(), type=KVTransferParams)

    ends_s = time.monotonic() + seconds
    num_rounds = 0
    while time.monotonic() < ends_s or num_rounds < 5:
        num_rounds += 1
        start = time.perf_counter()
        np.copyto(private[0], private[1])
        times["memory"].append(time.perf_counter() - start)
        start = time.perf_counter()
        bare_receive(bare, flat)
        times["bare"].append(time.perf_counter() - start)
        for name, fetcher in (("shm", mapping), ("tcp", streaming)):
            params = ticket()
            start = time.perf_counter()
            report = await fetcher.fetch(params, pairs, memory, timeout_s=30)
            times[name].append(time.perf_counter() - start)
            assert report.back_end == name
    held = scattered(count, shape)
    assert all(memory.blocks[own, -1] == held[index] % 256 for index, own in pairs), "wrong blocks"
    await mapping.close()
    await streaming.close()
    for name in times:
        del times[name][0]  # the first round maps memory and connects
    rate = {name: size * count / statistics.median(values) / 1e9 for name, values in times.items()}
    best = {name: size * count / min(values) / 1e9 for name, values in times.items()}
    print(
        f"{size >> 10:>5} KiB x {count:<4}{rate['memory']:>7.2f}{rate['shm']:>7.2f}{rate['bare']:>7.2f}"
        f"{rate['tcp']:>7.2f}{rate['shm'] / rate['memory']:>12.2f}{rate['tcp'] / rate['bare']:>10.2f}"
        f"{best['shm'] / best['memory']:>12.2f}{best['tcp'] / best['bare']:>10.2f}{num_rounds:>8}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=16.0, help="for all shapes together")
    seconds = parser.parse_args().seconds / len(SHAPES)
    print("                  ---- GB/s, medians -------    -- of the medians --    -- of the fastest --")
    print("                 memory    shm   bare    tcp  shm/memory  tcp/bare  shm/memory  tcp/bare  rounds")
    with running_prefill() as (orders, bare):
        for shape in range(len(SHAPES)):
            uvloop.run(measure(orders, bare, shape, seconds))


if __name__ == "__main__":
    main()
