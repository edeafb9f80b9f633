"""Two frontend processes behind one port: both work, one scrape shows both, one may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from .serving import Served, Watch, scrape, serve

pytestmark = pytest.mark.anyio

GRAPH = "tests/e2e/graphs.py:graph"
REQUESTS = "dynamo_frontend_requests_total"
BODY = {"model": "demo", "prompt": [20, 21, 22], "max_tokens": 4}


@pytest.fixture(scope="module")
def pair() -> Iterator[Served]:
    engines = [word for name in ("Prefill", "Decode") for word in ("--set", f"services.{name}.engine=echo")]
    with serve(GRAPH, *engines, "--set", "services.Api.replicas=2") as served:
        yield served


async def ask_on_connections_of_their_own(url: str, num: int) -> None:
    for _ in range(num):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.post("/v1/completions", json=BODY)).status_code == 200


async def served_by(url: str) -> dict[str, float]:
    """Requests so far by frontend; whichever of them is asked."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return (await scrape(client)).by("worker_id", REQUESTS)


async def test_both_serve_and_each_shows_the_metrics_of_both(pair: Served) -> None:
    await ask_on_connections_of_their_own(pair.url, 32)
    async with Watch(pair.address) as watch:
        ids = {record.worker_id for record in watch.ready("Api")}
        assert {record.url for record in watch.ready("Api")} == {pair.url}
    assert len(ids) == 2
    for _ in range(16):
        counts = await served_by(pair.url)
        assert counts.keys() == ids
        assert sum(counts.values()) == 32


async def test_health_says_whose_details_it_shows(pair: Served) -> None:
    async with Watch(pair.address) as watch:
        ids = {record.worker_id for record in watch.ready("Api")}
    async with httpx.AsyncClient(base_url=pair.url, timeout=30) as client:
        details = (await client.get("/health")).json()["details"]["demo"]
    assert any(details.endswith(f"; as {name} has it, one of 2 frontends") for name in ids)


async def test_the_other_serves_while_one_is_dead(pair: Served) -> None:
    async with Watch(pair.address) as watch:
        dead, left = watch.ready("Api")
        assert dead.pid is not None
        os.kill(dead.pid, signal.SIGKILL)
        await watch.wait_until(lambda: dead.worker_id not in {each.worker_id for each in watch.ready("Api")})
        while len(watch.ready("Api")) < 2:  # no request fails while there is one, nor when it is new
            await ask_on_connections_of_their_own(pair.url, 4)
        (new,) = {record.worker_id for record in watch.ready("Api")} - {left.worker_id}
        before = (await served_by(pair.url)).get(new, 0.0)
        await ask_on_connections_of_their_own(pair.url, 32)
        assert (await served_by(pair.url))[new] > before
