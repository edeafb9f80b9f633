"""Two workers with host memory that they read from each other: the second answers from the first one's."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import httpx
import pytest

from dynamo_sdk.types import WorkerRecord

from .asking import Answer, Body, assert_same, client_of, complete, completion, decided, random_tokens
from .conftest import QUICKSTART
from .running import GRAPHS
from .serving import Metrics, Served, Watch, scrape, serve

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ONBOARDED = "kvbm_onboarded_blocks_total"
DEPLOY = """
router: {name: kv, args: {filters: ["named_worker:only_named"]}}
kv: {tiers: [{kind: ram, capacity: 512MiB}, {kind: shared}]}
services:
  Whole: {replicas: 2, cpus: 1}
"""


DISAGGREGATED = """
router: kv
kv: {tiers: [{kind: ram, capacity: 512MiB}, {kind: shared}]}
services:
  Prefill: {cpus: 1}
  Decode: {cpus: 1}
"""


@pytest.fixture
def legs(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "deploy.yaml").write_text(DISAGGREGATED)
    with serve(QUICKSTART, "-f", str(tmp_path / "deploy.yaml")) as served:
        yield served


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "deploy.yaml").write_text(DEPLOY)
    with serve(f"{GRAPHS}:aggregated", "-f", str(tmp_path / "deploy.yaml")) as served:
        yield served


def prompts(seed: int, num: int) -> list[Body]:
    rng = Random(seed)
    return [completion(random_tokens(rng, rng.randrange(600, 900)), 8) for _ in range(num)]


async def ask(client: httpx.AsyncClient, bodies: list[Body], worker_id: str | None = None) -> list[Answer]:
    """At ``worker_id`` (None: wherever), one after the other."""
    named = {} if worker_id is None else {"dynamo": {"worker": worker_id}}
    return [await complete(client, body | named) for body in bodies]


async def wait_for_prefill(client: httpx.AsyncClient) -> None:
    """Until the frontend sends prompts to a prefill worker; without one, decode workers do it all."""
    body = completion(random_tokens(Random(9), 20), 2, dynamo={"explain": True})
    async with asyncio.timeout(60):
        while True:
            document = (await client.post("/v1/completions", json=body)).raise_for_status().json()
            if any(choice["pool"] == "prefill" for choice in document["dynamo"]["explain"]):
                return


async def wait_for_blocks(client: httpx.AsyncClient, worker_id: str, num_blocks: int) -> Metrics:
    """Until so many blocks have gone down to the worker's host memory."""
    async with asyncio.timeout(30):
        while True:
            metrics = await scrape(client)
            if metrics.total("kvbm_blocks", worker_id=worker_id, tier="ram") >= num_blocks:
                return metrics


def is_replaced(watch: Watch, killed: WorkerRecord, num_workers: int) -> bool:
    ready = watch.ready(killed.service)
    return len(ready) == num_workers and killed.worker_id not in [record.worker_id for record in ready]


async def test_answers_from_the_memory_of_another_worker(aggregated: Served, pair: Served) -> None:
    bodies, expected = await decided(aggregated.url, prompts(1, 12), 7)
    async with Watch(pair.address) as watch, client_of(pair.url) as client:
        await watch.wait_until(lambda: len(watch.ready("Whole")) == 2)
        first, second = watch.ready("Whole")
        assert first.kv_address != second.kv_address
        assert_same(await ask(client, bodies, first.worker_id), expected)
        await wait_for_blocks(client, first.worker_id, 7 * 600 // 16)

        # The first prompt is computed, and reading is measured beside it; the others are read.
        assert_same(await ask(client, bodies, second.worker_id), expected)
        metrics = await scrape(client)
        assert metrics.total(ONBOARDED, worker_id=second.worker_id, tier="shared") > 100
        assert metrics.total("kvbm_shared_blocks_total", worker_id=first.worker_id) > 100
        assert metrics.total(ONBOARDED, worker_id=first.worker_id, tier="shared") == 0
        await watch.check_integrity("Whole")


async def test_the_other_worker_is_killed_while_it_is_read(aggregated: Served, pair: Served) -> None:
    bodies, expected = await decided(aggregated.url, prompts(2, 14), 9)
    async with Watch(pair.address) as watch, client_of(pair.url) as client:
        await watch.wait_until(lambda: len(watch.ready("Whole")) == 2)
        first, second = watch.ready("Whole")
        assert_same(await ask(client, bodies, first.worker_id), expected)
        await wait_for_blocks(client, first.worker_id, 9 * 600 // 16)
        assert_same(await ask(client, bodies[:3], second.worker_id), expected[:3])

        async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(ask(client, [body], second.worker_id)) for body in bodies[3:]]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
        assert_same([answer for task in running for answer in task.result()], expected[3:])
        await watch.wait_until(lambda: is_replaced(watch, first, 2))
        await watch.check_integrity("Whole")


async def test_a_new_prefill_worker_reads_from_the_decode_worker(aggregated: Served, legs: Served) -> None:
    """The old one was killed with all that it had cached; who got its blocks still has them."""
    bodies, expected = await decided(aggregated.url, prompts(3, 10), 6)
    async with Watch(legs.address) as watch, client_of(legs.url) as client:
        [decode] = watch.ready("Decode")
        [prefill] = watch.ready("Prefill")
        assert_same(await ask(client, bodies), expected)
        await wait_for_blocks(client, decode.worker_id, 6 * 600 // 16)
        assert prefill.pid is not None
        os.kill(prefill.pid, signal.SIGKILL)
        await watch.wait_until(lambda: is_replaced(watch, prefill, 1))
        await wait_for_prefill(client)

        assert_same(await ask(client, bodies), expected)
        metrics = await scrape(client)
        assert metrics.total(ONBOARDED, role="prefill", tier="shared") > 50
        assert metrics.total("kvbm_shared_blocks_total", worker_id=decode.worker_id) > 50
        await watch.check_integrity("Prefill", "Decode")
