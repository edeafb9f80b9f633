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

from .asking import Answer, Body, assert_same, client_of, complete, completion, decided, random_tokens
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


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "deploy.yaml").write_text(DEPLOY)
    with serve(f"{GRAPHS}:aggregated", "-f", str(tmp_path / "deploy.yaml")) as served:
        yield served


def prompts(seed: int, num: int) -> list[Body]:
    rng = Random(seed)
    return [completion(random_tokens(rng, rng.randrange(600, 900)), 8) for _ in range(num)]


async def ask(client: httpx.AsyncClient, bodies: list[Body], worker_id: str) -> list[Answer]:
    """At ``worker_id``, one after the other."""
    return [await complete(client, {**body, "dynamo": {"worker": worker_id}}) for body in bodies]


async def wait_for_blocks(client: httpx.AsyncClient, worker_id: str, num_blocks: int) -> Metrics:
    """Until so many blocks have gone down to the worker's host memory."""
    async with asyncio.timeout(30):
        while True:
            metrics = await scrape(client)
            if metrics.total("kvbm_blocks", worker_id=worker_id, tier="ram") >= num_blocks:
                return metrics


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

        def is_replaced() -> bool:
            ready = watch.ready("Whole")
            return len(ready) == 2 and first.worker_id not in [record.worker_id for record in ready]

        await watch.wait_until(is_replaced)
        await watch.check_integrity("Whole")
