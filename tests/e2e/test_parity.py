"""Disaggregated answers are the aggregated ones: same tokens, log-probabilities within 1e-4."""

from __future__ import annotations

from random import Random

import pytest

from .asking import (
    CONTEXT_LENGTH,
    Body,
    assert_same,
    client_of,
    complete_all,
    completion,
    decided,
    random_tokens,
)
from .serving import Metrics, Served, scrape

pytestmark = pytest.mark.anyio

NUM_PROMPTS = 200
BLOCK_SIZE = 16
BLOCK_BYTES = BLOCK_SIZE * 4 * 2 * 2 * 64 * 4  # layers, keys and values, heads, dimension, float32


def random_requests(seed: int) -> list[Body]:
    """Prompts around block borders, of any length, with shared prefixes, and filling the context."""
    rng = Random(seed)
    prefixes = [random_tokens(rng, rng.randrange(16, 900)) for _ in range(6)]

    def prompt(kind: int) -> list[int]:
        if kind < 6:
            return random_tokens(rng, rng.choice([1, 2, 15, 16, 17, 31, 32, 33]))
        if kind < 11:
            return random_tokens(rng, int(2 ** rng.uniform(0, 11)))
        if kind < 18:
            return rng.choice(prefixes) + random_tokens(rng, rng.randrange(1, 60))
        return random_tokens(rng, rng.randrange(CONTEXT_LENGTH - 60, CONTEXT_LENGTH))

    bodies: list[Body] = []
    for index in range(NUM_PROMPTS + 10):
        tokens = prompt(index % 20)
        max_tokens = min(rng.randrange(1, 24), CONTEXT_LENGTH - len(tokens))
        sampling = {"temperature": 0.9, "seed": index, "top_p": 0.95} if index % 2 else {}
        bodies.append(completion(tokens, max_tokens, **sampling))
    return bodies


def grown(before: Metrics, after: Metrics, name: str) -> dict[str, float]:
    """Role -> by how much the series have grown."""
    start, end = before.by("role", name), after.by("role", name)
    return {role: end[role] - start.get(role, 0.0) for role in end}


async def test_disaggregated_equals_aggregated(aggregated: Served, disaggregated: Served) -> None:
    bodies, whole = await decided(aggregated.url, random_requests(seed=5), NUM_PROMPTS)
    num_prompt_tokens = sum(len(body["prompt"]) for body in bodies)
    async with client_of(disaggregated.url) as client:
        before = await scrape(client)
        split = await complete_all(disaggregated.url, bodies)
        after = await scrape(client)

    assert_same(split, whole)
    assert len({answer.text for answer in whole}) > NUM_PROMPTS // 2

    prompted = grown(before, after, "dynamo_component_prompt_tokens_total")
    computed = grown(before, after, "dynamo_component_prefill_tokens_computed_total")
    cached = grown(before, after, "dynamo_component_cached_prompt_tokens_total")
    assert prompted == {"prefill": num_prompt_tokens, "decode": 0}
    assert computed["decode"] == cached["decode"] == 0
    assert computed["prefill"] + cached["prefill"] == num_prompt_tokens
    assert cached["prefill"] > 0

    generated = grown(before, after, "dynamo_component_decode_tokens_total")
    assert generated == {"prefill": 0, "decode": sum(answer.num_tokens - 1 for answer in split)}

    moved = grown(before, after, "dynamo_component_kv_transfer_bytes_total")
    num_blocks = sum(-(-len(body["prompt"]) // BLOCK_SIZE) for body in bodies)
    assert list(moved) == ["decode"]
    assert moved["decode"] % BLOCK_BYTES == 0
    assert 0.5 * num_blocks < moved["decode"] / BLOCK_BYTES <= num_blocks
