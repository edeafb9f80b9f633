"""Sampled output belongs to the request alone: not to its batch, its leg or its worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from dynamo_sdk.types import SamplingParams

from .models import logprobs_reference, random_prompt
from .running import a_request, answer, running_engine

pytestmark = pytest.mark.anyio

SAMPLINGS = [
    SamplingParams(max_tokens=20, seed=1),
    SamplingParams(max_tokens=20, seed=2, temperature=0.5, top_k=20),
    SamplingParams(max_tokens=20, seed=3, temperature=1.5, top_p=0.8, logprobs=1),
    SamplingParams(max_tokens=20, seed=4, min_p=0.05, repetition_penalty=1.3),
    SamplingParams(max_tokens=20, seed=5, presence_penalty=0.7, frequency_penalty=0.4),
    SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=1.3),
]


async def test_same_tokens_alone_and_in_a_batch(llama: Path) -> None:
    prompts = [random_prompt(seed, 10 + seed) for seed in range(len(SAMPLINGS))]
    requests = [
        a_request(prompt, sampling, request_id=f"r{i}")
        for i, (prompt, sampling) in enumerate(zip(prompts, SAMPLINGS, strict=True))
    ]
    async with running_engine(llama) as engine:
        alone = [(await answer(engine, request)).token_ids for request in requests]
        batched = await asyncio.gather(*(answer(engine, request) for request in requests))
    assert [found.token_ids for found in batched] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(SAMPLINGS)


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_a_later_leg_continues_where_an_earlier_one_stopped(
    sampling: SamplingParams, llama: Path
) -> None:
    prompt = random_prompt(1, 12)
    async with running_engine(llama) as engine:
        whole = (await answer(engine, a_request(prompt, sampling))).token_ids
        for split in (1, 7, 19):
            rest = await answer(engine, a_request(prompt, sampling, generated=whole[:split]))
            assert rest.token_ids == whole[split:]


async def test_another_seed_gives_other_tokens(llama: Path) -> None:
    prompt = random_prompt(2, 12)
    async with running_engine(llama) as engine:
        found = [
            tuple(
                (await answer(engine, a_request(prompt, SamplingParams(max_tokens=9, seed=seed)))).token_ids
            )
            for seed in (1, 2, 1)
        ]
    assert found[0] == found[2] != found[1]


async def test_logprobs_equal_those_of_transformers(
    folders: dict[str, Path], references: dict[str, torch.nn.Module], device: str
) -> None:
    prompt = random_prompt(4, 21)
    sampling = SamplingParams(max_tokens=10, temperature=0.0, logprobs=4)
    for architecture, folder in folders.items():
        async with running_engine(folder, device=device, dtype="float32") as engine:
            found = await answer(engine, a_request(prompt, sampling))
        expected = logprobs_reference(references[architecture], prompt + found.token_ids, 10)
        assert len(found.logprobs) == 10
        for token, ours, theirs in zip(found.token_ids, found.logprobs, expected, strict=True):
            assert ours.logprob == pytest.approx(theirs[token].item(), abs=1e-4)
            assert [value for _, value in ours.top] == pytest.approx(theirs.topk(4).values.tolist(), abs=1e-4)


async def test_min_tokens_keeps_end_tokens_back(llama: Path) -> None:
    prompt = random_prompt(3, 8)
    async with running_engine(llama) as engine:
        free = (await answer(engine, a_request(prompt))).token_ids
        ends = tuple(set(free))
        sampling = SamplingParams(max_tokens=16, temperature=0.0, stop_token_ids=ends, min_tokens=6)
        found = (await answer(engine, a_request(prompt, sampling))).token_ids
    assert len(found) >= 6
    assert not set(found[:6]) & set(ends)
