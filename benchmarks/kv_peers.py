"""How much of a socket's own speed remains when a worker reads another one's host memory.

Two processes. One holds blocks in a RAM store behind a peer server, and sends plain bytes through a socket of
its own; the other one gets batches of blocks, in turn with receiving as many plain bytes into the same
memory, so that whatever disturbs the machine disturbs both. Figures are medians, a ratio is the median of the
rounds' ratios. Reading includes the question, copying out of the store, and checksums on both sides.

    python benchmarks/kv_peers.py [--rounds 40] [--batch-mib 16] [--block-kib 64 4096]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from multiprocessing.connection import Connection

import numpy as np
import uvloop

from dynamo_sdk.interfaces import BlockOffer, CacheKey
from dynamo_sdk.stores import PeerServer, PeerStore, PeerStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.transfer.address import bound_address, connect, listen, parse_address, prepare, socket_for
from dynamo_sdk.transfer.host_pages import private_memory
from dynamo_sdk.types import KVSource

NUM_WARM_UP = 3
KINDS = ("unix", "tcp")


def key_of(number: int) -> CacheKey:
    return CacheKey(blake2b(b"%d" % number, digest_size=16).digest())


def send_on_demand(listener: socket.socket, memory: memoryview) -> None:
    """All of ``memory``, whenever a byte comes."""
    connected, _ = listener.accept()
    prepare(connected)
    while connected.recv(1):
        connected.sendall(memory)


async def hold(block_bytes: int, batch_bytes: int, folder: str, orders: Connection) -> None:
    """Serve until told to stop."""
    memory = private_memory(batch_bytes, is_populated=True)
    np.frombuffer(memory, np.uint8)[:] = np.random.default_rng(1).integers(0, 256, batch_bytes)
    store = RamStore(RamStoreConfig(block_bytes=block_bytes, capacity_bytes=batch_bytes))
    await store.start()
    num_blocks = batch_bytes // block_bytes
    await store.put_many(
        [BlockOffer(key_of(n), memory[n * block_bytes : (n + 1) * block_bytes]) for n in range(num_blocks)]
    )
    server = PeerServer([store], block_bytes)
    addresses = await server.start([f"unix:{folder}/blocks", "tcp:127.0.0.1:0"])
    plain = [listen(parse_address(text)) for text in (f"unix:{folder}/plain", "tcp:127.0.0.1:0")]
    for listener in plain:
        listener.setblocking(True)
        threading.Thread(target=send_on_demand, args=(listener, memory), daemon=True).start()
    orders.send([addresses, [str(bound_address(listener, advertise_host=None)) for listener in plain]])
    await asyncio.to_thread(orders.recv)
    await server.close()
    await store.close()


def plain_connection(address: str) -> socket.socket:
    connected, place = socket_for(parse_address(address))
    connect(connected, place)
    return connected


def receive(connected: socket.socket, target: memoryview) -> None:
    connected.send(b"?")
    while target:
        target = target[connected.recv_into(target) :]


async def compare(block_bytes: int, batch_bytes: int, num_rounds: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        process = spawn.Process(target=run_holder, args=(block_bytes, batch_bytes, folder, theirs))
        process.start()
        addresses, plain = await asyncio.to_thread(ours.recv)
        target = private_memory(batch_bytes, is_populated=True)
        num_blocks = batch_bytes // block_bytes
        into = [target[n * block_bytes : (n + 1) * block_bytes] for n in range(num_blocks)]
        keys = [key_of(n) for n in range(num_blocks)]
        store = PeerStore(PeerStoreConfig(block_bytes=block_bytes, timeout_s=60))
        await store.start()
        print(f"batches of {batch_bytes >> 20} MiB in blocks of {block_bytes >> 10} KiB")
        for kind, address, plain_address in zip(KINDS, addresses, plain, strict=True):
            connected = plain_connection(plain_address)

            async def get(address: str = address) -> None:
                store.expect(keys, KVSource(worker_id="other", address=address, num_blocks=num_blocks))
                assert all(await store.get_into(keys, into))

            async def copy(connected: socket.socket = connected) -> None:
                await asyncio.get_running_loop().run_in_executor(thread, receive, connected, target)

            times = await measure({"get": get, "copy": copy}, num_rounds)
            connected.close()
            ratio = statistics.median(b / a for a, b in zip(times["get"], times["copy"], strict=True))
            rates = [batch_bytes / statistics.median(times[name]) / 1e9 for name in ("get", "copy")]
            print(f"  {kind:5}read {rates[0]:5.2f} GB/s, socket {rates[1]:5.2f} GB/s, {ratio:.2f} of it")
        await store.close()
        ours.send(None)
        process.join()


async def measure(turns: dict[str, Callable], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each turn, round by round."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(NUM_WARM_UP + num_rounds):
        for name, turn in turns.items():
            begin_s = time.perf_counter()
            await turn()
            times[name].append(time.perf_counter() - begin_s)
    return {name: values[NUM_WARM_UP:] for name, values in times.items()}


def run_holder(block_bytes: int, batch_bytes: int, folder: str, orders: Connection) -> None:
    uvloop.run(hold(block_bytes, batch_bytes, folder, orders))


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-mib", type=int, default=16)
    parser.add_argument("--block-kib", type=int, nargs="+", default=[64, 4096])
    arguments = parser.parse_args()
    for block_kib in arguments.block_kib:
        await compare(block_kib << 10, arguments.batch_mib << 20, arguments.rounds)


if __name__ == "__main__":
    uvloop.run(main())
