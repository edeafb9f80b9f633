"""Workers are killed with SIGKILL while they work; no client loses or repeats a token."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from random import Random

import httpx
import pytest

from dynamo_sdk.types import WorkerRecord

from .asking import (
    Answer,
    Body,
    assert_same,
    client_of,
    complete_all,
    completion,
    decided,
    random_tokens,
    stream_completion,
)
from .conftest import QUICKSTART
from .serving import Metrics, Served, Watch, scrape, serve, wait_at_rest

pytestmark = pytest.mark.anyio

MIGRATIONS = "dynamo_frontend_model_migration_total"
INFLIGHT = "dynamo_component_inflight_requests"


@pytest.fixture(scope="module")
def pairs() -> Iterator[Served]:
    """Two prefill and two decode workers."""
    words = ("--set", "services.Prefill.replicas=2", "--set", "services.Decode.replicas=2")
    with serve(QUICKSTART, *words) as served:
        yield served


def some_requests(seed: int, num: int, *, max_tokens: int) -> list[Body]:
    rng = Random(seed)
    prefix = random_tokens(rng, 100)
    return [
        completion(
            (prefix if index % 3 == 0 else []) + random_tokens(rng, rng.randrange(1, 700)),
            rng.randrange(max_tokens // 2, max_tokens),
            **({"temperature": 0.8, "seed": index} if index % 2 else {}),
        )
        for index in range(num)
    ]


def kill(worker: WorkerRecord) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)


def busy(metrics: Metrics, workers: list[WorkerRecord]) -> list[WorkerRecord]:
    num_running = metrics.by("worker_id", INFLIGHT)
    return [worker for worker in workers if num_running.get(worker.worker_id, 0) > 0]


async def kill_a_busy_one(client: httpx.AsyncClient, watch: Watch, service: str) -> WorkerRecord:
    """Kill a worker of ``service`` that runs a request, as soon as there is one."""
    async with asyncio.timeout(30):
        while not (found := busy(await scrape(client), watch.ready(service))):
            pass
    kill(found[0])
    return found[0]


async def wait_complete(watch: Watch, killed: list[WorkerRecord], **num_ready: int) -> None:
    """Return when the killed are gone and as many as ever are ready."""
    gone = {worker.worker_id for worker in killed}

    def is_complete() -> bool:
        workers = {service: watch.ready(service) for service in num_ready}
        ids = {worker.worker_id for found in workers.values() for worker in found}
        return not ids & gone and all(len(workers[name]) == num for name, num in num_ready.items())

    await watch.wait_until(is_complete)


async def test_two_pairs_answer_as_one_worker_does(aggregated: Served, pairs: Served) -> None:
    bodies, expected = await decided(aggregated.url, some_requests(seed=3, num=52, max_tokens=40), 48)
    answers = await complete_all(pairs.url, bodies, num_at_once=24)
    assert_same(answers, expected)
    async with client_of(pairs.url) as client:
        metrics = await scrape(client)
    computed = metrics.by("worker_id", "dynamo_component_prefill_tokens_computed_total", role="prefill")
    generated = metrics.by("worker_id", "dynamo_component_decode_tokens_total", role="decode")
    assert len(computed) == len(generated) == 2
    assert all(computed.values())
    assert all(generated.values())


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "seeded"])
async def test_a_stream_survives_its_decode_worker(
    aggregated: Served, pairs: Served, sampling: dict[str, object]
) -> None:
    body = completion(list(range(20, 300)), 400, **sampling)
    _, expected = await decided(aggregated.url, [body], 1)
    async with client_of(pairs.url) as client, Watch(pairs.address) as watch:
        await wait_complete(watch, [], Prefill=2, Decode=2)
        before = await wait_at_rest(client)
        killing: list[asyncio.Task[WorkerRecord]] = []

        def on_chunk(num_chunks: int) -> None:
            if num_chunks == 50:
                killing.append(asyncio.create_task(kill_a_busy_one(client, watch, "Decode")))

        answer = await stream_completion(client, body, on_chunk)
        killed = await asyncio.gather(*killing)
        assert_same([answer], expected)
        after = await scrape(client)
        moved = {"migration_type": "ongoing_request"}
        assert after.total(MIGRATIONS, **moved) == before.total(MIGRATIONS, **moved) + 1
        await wait_complete(watch, killed, Prefill=2, Decode=2)
        assert_same([await stream_completion(client, body)], expected)
        await wait_at_rest(client)
        await watch.check_integrity("Prefill", "Decode")


@pytest.mark.parametrize("num_killed", [1, 2])
async def test_requests_survive_their_prefill_workers(
    aggregated: Served, pairs: Served, num_killed: int
) -> None:
    """One: the other takes over. Both: decode workers prefill for themselves."""
    requests = some_requests(seed=num_killed, num=35, max_tokens=30)
    bodies, expected = await decided(aggregated.url, requests, 32)
    async with client_of(pairs.url) as client, Watch(pairs.address) as watch:
        await wait_complete(watch, [], Prefill=2, Decode=2)
        before = await scrape(client)
        asking = asyncio.create_task(complete_all(pairs.url, bodies, num_at_once=16))
        killed = [await kill_a_busy_one(client, watch, "Prefill")]
        if num_killed == 2:
            others = [worker for worker in watch.ready("Prefill") if worker not in killed]
            for worker in others:
                kill(worker)
            killed += others
        assert_same(await asking, expected)
        metrics = await scrape(client)
        computed_by_decode = metrics.total("dynamo_component_prefill_tokens_computed_total", role="decode")
        before_that = before.total("dynamo_component_prefill_tokens_computed_total", role="decode")
        if num_killed == 2:
            assert computed_by_decode > before_that
        await wait_complete(watch, killed, Prefill=2, Decode=2)
        await wait_at_rest(client)
        await watch.check_integrity("Prefill", "Decode")


async def test_requests_wait_for_the_only_decode_worker(aggregated: Served, disaggregated: Served) -> None:
    bodies, expected = await decided(aggregated.url, some_requests(seed=9, num=10, max_tokens=120), 8)
    async with client_of(disaggregated.url) as client, Watch(disaggregated.address) as watch:
        before = await wait_at_rest(client)
        num_seen = 0
        killed: list[WorkerRecord] = []

        def on_chunk(num_chunks: int) -> None:
            nonlocal num_seen
            num_seen += 1
            if num_seen == 60:
                killed.extend(watch.ready("Decode"))
                kill(killed[0])

        async def ask(body: Body) -> Answer:
            return await stream_completion(client, body, on_chunk)

        answers = await asyncio.gather(*(ask(body) for body in bodies))
        assert len(killed) == 1
        assert_same(answers, expected)
        after = await wait_at_rest(client)
        assert after.total(MIGRATIONS) > before.total(MIGRATIONS)
        await wait_complete(watch, killed, Prefill=1, Decode=1)
        await watch.check_integrity("Prefill", "Decode")
