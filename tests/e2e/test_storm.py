"""64 clients at once, a third of which leave at random moments; afterwards nothing is left of any.

``DYNAMO_SDK_STORM_S=60`` makes it a full minute.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from random import Random

import httpx
import pytest

from dynamo_sdk.launch.inprocess import InProcessLauncher

from .asking import client_of, complete, completion, random_tokens, stream_completion
from .graphs import Decode, Prefill, graph
from .serving import Metrics, Served, Watch, scrape, wait_at_rest

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

NUM_CLIENTS = 64
STORM_S = float(os.environ.get("DYNAMO_SDK_STORM_S", "8"))
REQUESTS = "dynamo_frontend_requests_total"


class Leaves(Exception):
    """This client has read enough."""


async def one_request(client: httpx.AsyncClient, rng: Random) -> str:
    """Ask, and perhaps leave before the end; the outcome, which must be what was meant."""
    body = completion(random_tokens(rng, rng.randrange(1, 600)), rng.randrange(1, 120))
    ask = stream_completion if rng.random() < 0.7 else complete
    if rng.random() >= 1 / 3:
        answer = await ask(client, body)
        assert (answer.num_tokens, answer.finish_reason) == (body["max_tokens"], "length")
        return "success"
    if rng.random() < 0.5:
        try:
            async with asyncio.timeout(rng.uniform(0, 0.5)):
                await ask(client, body)
        except TimeoutError:
            return "left"
        return "success"
    last = rng.randrange(1, 30)

    def leave(num_chunks: int) -> None:
        if num_chunks == last:
            raise Leaves

    try:
        await stream_completion(client, body, leave)
    except Leaves:
        return "left"
    return "success"


async def storm(url: str, duration_s: float, seed: int) -> tuple[Counter[str], Metrics, Metrics]:
    """The outcomes, and a scrape before and one after it, at rest."""
    outcomes: Counter[str] = Counter()
    async with client_of(url) as client:
        before = await wait_at_rest(client)
        end_s = time.monotonic() + duration_s

        async def keep_asking(rng: Random) -> None:
            while time.monotonic() < end_s:
                outcomes[await one_request(client, rng)] += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_CLIENTS):
                tasks.create_task(keep_asking(Random(seed + number)))
        return outcomes, before, await wait_at_rest(client)


def assert_accounted(outcomes: Counter[str], before: Metrics, after: Metrics) -> None:
    """Every request is counted once; no one failed. Who leaves may be too late to be noticed."""
    counted = {
        status: after.total(REQUESTS, status=status) - before.total(REQUESTS, status=status)
        for status in ("success", "cancelled", "rejected", "error")
    }
    assert counted["error"] == counted["rejected"] == 0
    assert outcomes["success"] <= counted["success"]
    assert 0 < counted["cancelled"] <= outcomes["left"]
    assert sum(counted.values()) <= outcomes.total()
    assert outcomes["left"] > 0.1 * outcomes.total() > 0


async def test_a_storm_leaves_nothing_behind(disaggregated: Served) -> None:
    outcomes, before, after = await storm(disaggregated.url, STORM_S, seed=7)
    assert_accounted(outcomes, before, after)
    assert after.total("dynamo_component_requests_total", status="error") == 0
    async with Watch(disaggregated.address) as watch:
        await watch.check_integrity("Prefill", "Decode")
    async with client_of(disaggregated.url) as client:
        assert (await client.get("/health")).status_code == 200


async def test_a_storm_in_one_process_leaves_no_task() -> None:
    async def run() -> None:
        async with InProcessLauncher.app(graph) as app:
            assert app.url is not None
            outcomes, before, after = await storm(app.url, STORM_S / 3, seed=11)
            assert_accounted(outcomes, before, after)
            await app.client(Prefill).check_integrity()
            await app.client(Decode).check_integrity()

    before = asyncio.all_tasks()
    await run()
    assert asyncio.all_tasks() == before


async def test_what_runs_is_seen(disaggregated: Served) -> None:
    """The scrape that a storm ends with would show a request that is still there."""
    async with client_of(disaggregated.url) as client:
        seen: list[Metrics] = []

        async def look() -> None:
            seen.append(await scrape(client))

        looking: list[asyncio.Task[None]] = []

        def on_chunk(num_chunks: int) -> None:
            if num_chunks == 20:
                looking.append(asyncio.create_task(look()))

        await stream_completion(client, completion([20] * 40, 1500), on_chunk)
        await asyncio.gather(*looking)
        blocks = seen[0].by("role", "dynamo_component_kvstats_active_blocks")
        assert blocks["prefill"] == 0
        assert blocks["decode"] >= 3
        assert seen[0].by("role", "dynamo_component_inflight_requests") == {"prefill": 0, "decode": 1}
        assert seen[0].total("dynamo_frontend_inflight_requests") == 1
        await wait_at_rest(client)
