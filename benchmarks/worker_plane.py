"""CPU time of the worker's half of a request: socket, service, scheduler and back, without a model.

A process of its own runs the real ``Worker`` service with the mocker engine, whose steps take no time. A
client in this process keeps ``--streams`` calls open over a Unix socket, reads their items undecoded, and
grants credit as the frontend's client does. Every shape is measured ``--rounds`` times, in turn; figures
are medians of the worker's CPU time, with the range in brackets.

    python benchmarks/worker_plane.py [--streams 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import random
import statistics
import tempfile
import time

import anyio
import msgspec
import uvloop

from dynamo_sdk.errors import ConnectionLost, DynamoError
from dynamo_sdk.graph import Graph, endpoint, service
from dynamo_sdk.runtime.clock import SystemClock
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.runtime.link import Link
from dynamo_sdk.runtime.network import SocketNetwork
from dynamo_sdk.runtime.replica import ReplicaSpec, run_replica
from dynamo_sdk.runtime.session import Event, Ready, Received, Side, StreamFailed
from dynamo_sdk.services import Worker
from dynamo_sdk.types import GenerateRequest, ModelSpec, SamplingParams, pack_tokens
from dynamo_sdk.types.plan import DeploymentPlan, ModelPlan, PluginChoice, ServicePlan

SHAPES = ((128, 1), (2048, 1), (128, 128))
"""Tokens of prompt and output."""

CREDIT = 64
SPEEDUP = 1e6
VOCABULARY = 30_000


@service
class MeasuredWorker(Worker):
    """Says what it has used."""

    @endpoint
    async def cpu_s(self) -> float:
        return time.process_time()


def plan() -> DeploymentPlan:
    engine = PluginChoice(
        name="mocker",
        args={
            "speedup_ratio": SPEEDUP,
            "context_length": 32768,
            "block_size": 16,
            "num_blocks": 16384,
            "max_num_seqs": 1024,
            "max_num_batched_tokens": 65536,
        },
    )
    return DeploymentPlan(
        target="in this file",
        models=(ModelPlan(spec=ModelSpec(name="m", path="demo"), router=PluginChoice(name="round-robin")),),
        services=(ServicePlan(name="MeasuredWorker", factory="", engine=engine, model="m"),),
    )


def serve(address: str) -> None:
    spec = ReplicaSpec(
        plan=plan(), service="MeasuredWorker", replica=0, worker_id="w", registry="", listen=address
    )

    async def run() -> None:
        await run_replica(spec, anyio.Event(), graph=Graph(MeasuredWorker), discovery=MemoryDiscovery())

    uvloop.run(run())


class Client(Link):
    """Keeps a number of calls open and reads what comes as cheaply as it can be read."""

    def __init__(self) -> None:
        super().__init__(Side.CLIENT, None, SystemClock())
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()
        self._pending: list[bytes] = []
        self._num_items: dict[int, int] = {}
        self._last = msgspec.Raw()

    async def call(self, method: str, payloads: list[bytes], num_streams: int) -> msgspec.Raw:
        """Make all calls, ``num_streams`` at a time; the last item that came."""
        self._done = asyncio.get_running_loop().create_future()
        self._pending = payloads[num_streams:]
        self._method = method
        for payload in payloads[:num_streams]:
            self._open(payload)
        self.flush_soon()
        await self._done
        return self._last

    def _open(self, payload: bytes) -> None:
        self._num_items[
            self.session.open(self._method, msgspec.Raw(payload), credit=CREDIT, deadline_s=600.0)
        ] = 0

    def handle(self, event: Event) -> None:
        match event:
            case Received(entries, ended):
                num_items = self._num_items
                for number, payload in entries:
                    num_items[number] += 1
                    if num_items[number] % (CREDIT // 2) == 0:
                        self.session.grant(number, CREDIT // 2)
                    self._last = payload
                for number in ended:
                    del num_items[number]
                    if self._pending:
                        self._open(self._pending.pop())
                if not num_items and not self._done.done():
                    self._done.set_result(None)
            case StreamFailed(_, error):
                self.lost(error)
            case Ready():
                self.ready.set_result(None)
            case _:
                pass

    def lost(self, error: DynamoError) -> None:
        if not self._done.done():
            self._done.set_exception(error)


class Requests:
    """Prompts that share nothing, from a fixed seed."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._ids = itertools.count()

    def make(self, num_prompt_tokens: int, max_tokens: int) -> bytes:
        request = GenerateRequest(
            request_id=f"request-{next(self._ids):012}",
            model="m",
            prompt=pack_tokens(self._random.choices(range(VOCABULARY), k=num_prompt_tokens)),
            sampling=SamplingParams(
                max_tokens=max_tokens, ignore_eos=True, seed=self._random.getrandbits(32)
            ),
        )
        return msgspec.msgpack.encode((request,))


async def connect(address: str) -> Client:
    network = SocketNetwork()
    client = Client()
    while True:
        try:
            client.start(await network.connect(address, client.on_data, client.on_close))
        except ConnectionLost:
            await asyncio.sleep(0.1)
        else:
            await client.ready
            return client


async def cpu_s(client: Client) -> float:
    return msgspec.msgpack.decode(await client.call("cpu_s", [msgspec.msgpack.encode(())], 1), type=float)


async def measure(address: str, args: argparse.Namespace) -> None:
    client, requests = await connect(address), Requests()
    found: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in SHAPES}
    for round_number in range(args.rounds + 1):
        for shape in SHAPES:
            num_requests = args.tokens // (shape[0] // 16 + shape[1])
            payloads = [requests.make(*shape) for _ in range(num_requests)]
            before_s, start_s = await cpu_s(client), time.perf_counter()
            await client.call("generate", payloads, args.streams)
            wall_s, used_s = time.perf_counter() - start_s, await cpu_s(client) - before_s
            if round_number:  # the first one warms up
                found[shape].append((used_s / num_requests, wall_s / num_requests))
    for (num_prompt_tokens, max_tokens), rounds in found.items():
        used = [used_s * 1e6 for used_s, _ in rounds]
        middle = statistics.median(used)
        per_token = f", {middle / max_tokens:5.2f} us a token" if max_tokens > 1 else ""
        wall = statistics.median(wall_s for _, wall_s in rounds) * 1e6
        print(
            f"{num_prompt_tokens:5} in {max_tokens:4} out: {middle:7.1f} us CPU a request "
            f"[{min(used):.1f} .. {max(used):.1f}]{per_token}; {wall:.1f} us wall"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=60_000, help="about as much work in each measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/worker"
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(address,), daemon=True)
        process.start()
        try:
            uvloop.run(measure(address, args))
        finally:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
