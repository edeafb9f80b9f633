"""Two real vLLM workers behind the router ``kv``: one loads what the other has computed, from its memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from dynamo_sdk.runtime.clock import SystemClock
from dynamo_sdk.runtime.discovery import EmbeddedDiscovery
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.runtime.network import SocketNetwork
from dynamo_sdk.types import WorkerRecord
from real_engines.served import token_ids

from .test_graphs import ARGS, running

KV = {"tiers": [{"kind": "ram", "capacity": "64MiB"}, {"kind": "shared"}]}
ROUTER = {"name": "kv", "args": {"filters": ["named_worker:only_named"]}}
NUM_BLOCKS = 6
"""Of 32 tokens, which a prompt of 200 fills; the router passes on hints of four or more."""
TIMEOUT_S = 120.0


def prompt(number: int) -> list[int]:
    return [(13 * token + 41 * number) % 1000 + 10 for token in range(200)]


def ask(client: openai.OpenAI, number: int, worker: str | None = None, **dynamo: object) -> Any:
    """At ``worker``; None: wherever."""
    named = {} if worker is None else {"worker": worker}
    body = {"ignore_eos": True, "return_token_ids": True, "dynamo": {**named, **dynamo}}
    return client.completions.create(
        model="demo", prompt=prompt(number), max_tokens=24, temperature=0, extra_body=body
    )


def num_cached(answer: Any) -> int:
    return int(answer.usage.prompt_tokens_details.cached_tokens)


def seen(client: openai.OpenAI, number: int, worker: str | None) -> dict[str, int]:
    """How many blocks of a prompt the router thinks that each worker has or could read. Asked at ``worker``,
    whose next steps say what its tiers got."""
    answer = ask(client, number, worker, explain=True)
    (decision,) = answer.model_extra["dynamo"]["explain"]
    return {one["worker"]: one.get("num_cached_blocks", 0) for one in decision["candidates"]}


def is_within_reach(client: openai.OpenAI, number: int, owner: str, reader: str) -> bool:
    return seen(client, number, owner)[reader] >= NUM_BLOCKS


def until(is_true: Callable[[], bool]) -> None:
    """Each try asks a real server."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < deadline_s


def count(client: openai.OpenAI, name: str, *labels: str) -> float:
    """``labels``: such as ``tier="shared"``."""
    text = httpx.get(str(client.base_url.join("/metrics"))).text
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))


async def workers() -> list[WorkerRecord]:
    """Those that are ready, as the graph's own services see them."""
    sockets = {
        Path(connection.laddr).parent / "registry.sock"
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections(kind="unix")
        if str(connection.laddr).endswith(".tiers")
    }
    (registry,) = sockets
    discovery = EmbeddedDiscovery(
        f"unix:{registry}", secret=None, network=SocketNetwork(), clock=SystemClock()
    )
    fleet = FleetView(discovery)
    await fleet.start()
    try:
        return [record for record in fleet.of_service("Whole") if record.is_ready]
    finally:
        await fleet.close()
        await discovery.close()


def kill(record: WorkerRecord) -> None:
    """The worker, and vLLM in its own process before it."""
    worker = psutil.Process(record.pid)
    for process in [*worker.children(recursive=True), worker]:
        process.kill()


def test_a_worker_loads_what_another_one_has_computed_until_that_is_killed(tmp_path: Path):
    args = {**ARGS, "kv_onboarding": "always"}
    with running(tmp_path, "aggregated", kv=KV, router=ROUTER, args=args, Whole=2) as client:
        first, second = asyncio.run(workers())
        assert first.kv_address != second.kv_address
        expected = [token_ids(ask(client, number, first.worker_id)) for number in range(8)]
        for number in range(8):
            until(partial(is_within_reach, client, number, first.worker_id, second.worker_id))

        for number in range(3):
            answer = ask(client, number, second.worker_id)
            assert (token_ids(answer), num_cached(answer)) == (expected[number], NUM_BLOCKS * 32)
        onboarded = 'tier="shared"', f'worker_id="{second.worker_id}"'
        assert count(client, "kvbm_onboarded_blocks_total", *onboarded) == 3 * NUM_BLOCKS
        ask(client, 0, first.worker_id)  # vLLM says what it did with its next step
        others = f'worker_id="{first.worker_id}"'
        assert count(client, "kvbm_shared_blocks_total", others) == 3 * NUM_BLOCKS
        recomputed = ask(client, 3, second.worker_id, cache_salt="nobody else has it")
        assert (token_ids(recomputed), num_cached(recomputed)) == (expected[3], 0)

        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(ask, client, number, second.worker_id) for number in range(4, 8)]
            answers[0].result()
            kill(first)
            gone = ask(client, 3, second.worker_id)
            assert [token_ids(answer.result()) for answer in answers] == expected[4:]
        assert token_ids(gone) == expected[3]
        until(lambda: first.worker_id not in seen(client, 0, second.worker_id))
        until(lambda: len(seen(client, 0, second.worker_id)) == 2)
