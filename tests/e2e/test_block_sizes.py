"""Prefill and decode workers that cut the prompt into blocks of different sizes; over HTTP."""

from __future__ import annotations

from random import Random

import pytest

from .asking import Body, assert_same, client_of, complete_all, completion, random_tokens
from .graphs import aggregated, graph
from .serving import scrape

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def bodies() -> list[Body]:
    """Lengths around the ends of blocks, and prompts that share a beginning of whole and of half blocks."""
    rng = Random(11)
    shared = random_tokens(rng, 48)
    prompts = [random_tokens(rng, length) for length in (1, 15, 16, 17, 31, 33, 64, 150)]
    prompts += [shared + random_tokens(rng, length) for length in (5, 20, 40)]
    return [completion(prompt, 20) for prompt in prompts]


@pytest.mark.parametrize(("prefill", "decode"), [(16, 32), (32, 8)])
@pytest.mark.parametrize("back_end", ["shm", "stream"])
async def test_answers_are_those_of_one_worker(
    bodies: list[Body], prefill: int, decode: int, back_end: str
) -> None:
    async with aggregated.local() as app:
        expected = await complete_all(str(app.url), bodies)
    settings = [
        f"services.Prefill.args.block_size={prefill}",
        f"services.Decode.args.block_size={decode}",
        f"kv.transfer.back_end={back_end}",
        "kv.transfer.verify=true",
    ]
    async with graph.local(set=settings) as app:
        for _ in range(2):  # the second time decode has most blocks already
            assert_same(await complete_all(str(app.url), bodies), expected)
        async with client_of(str(app.url)) as client:
            moved = (await scrape(client)).by("back_end", "dynamo_component_kv_transfer_bytes_total")
    assert list(moved) == ["shm" if back_end == "shm" else "tcp"]
    assert min(moved.values()) > 0
