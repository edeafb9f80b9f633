"""Greedy tokens equal those of ``transformers``, whatever the batch, the chunks, the cache and the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynamo_sdk.types import FinishReason, ForwardPassMetrics, SamplingParams

from .models import CONFIGS, greedy_reference, random_prompt
from .running import GREEDY, a_request, answer, answer_all, running_engine

pytestmark = pytest.mark.anyio

LENGTHS = (1, 3, 17, 40, 4, 29, 64)
PROMPTS = [random_prompt(seed, length) for seed, length in enumerate(LENGTHS)]

Folders = dict[str, Path]
References = dict[str, torch.nn.Module]


@pytest.mark.parametrize("architecture", CONFIGS)
async def test_equals_transformers_alone_and_batched(
    architecture: str, folders: Folders, references: References, device: str
) -> None:
    expected = [greedy_reference(references[architecture], prompt, GREEDY.max_tokens) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS), "the reference must not be trivial"
    async with running_engine(
        folders[architecture], device=device, dtype="float32", enable_prefix_caching=False
    ) as engine:
        alone = [(await answer(engine, a_request(prompt))).token_ids for prompt in PROMPTS]
        assert alone == expected
        assert await answer_all(engine, PROMPTS) == expected


@pytest.mark.parametrize("architecture", CONFIGS)
async def test_chunked_prefill_changes_nothing(
    architecture: str, folders: Folders, references: References
) -> None:
    expected = [greedy_reference(references[architecture], prompt, GREEDY.max_tokens) for prompt in PROMPTS]
    steps: list[ForwardPassMetrics] = []
    async with running_engine(folders[architecture], max_num_batched_tokens=11, max_num_seqs=8) as engine:
        engine.subscribe_metrics(steps.append)
        assert await answer_all(engine, PROMPTS) == expected
    assert max(step.num_prefill_tokens + step.num_decode_requests for step in steps) <= 11
    assert any(step.num_prefill_tokens > 1 and step.num_decode_requests > 0 for step in steps)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
async def test_prefix_cache_hits_change_nothing(
    architecture: str, folders: Folders, references: References
) -> None:
    prompt = random_prompt(7, 45)
    longer = prompt + random_prompt(8, 9)
    async with running_engine(folders[architecture]) as engine:
        first = await answer(engine, a_request(prompt))
        again = await answer(engine, a_request(prompt))
        branch = await answer(engine, a_request(longer))
    assert first.token_ids == greedy_reference(references[architecture], prompt, GREEDY.max_tokens)
    assert again.token_ids == first.token_ids
    assert branch.token_ids == greedy_reference(references[architecture], longer, GREEDY.max_tokens)
    cached = [found.last.usage.num_cached_tokens for found in (first, again, branch) if found.last.usage]
    assert cached == [0, 44, 44]


async def test_preemption_changes_nothing(llama: Path, references: References) -> None:
    prompts = [random_prompt(seed, 20) for seed in range(5)]
    sampling = SamplingParams(max_tokens=40, temperature=0.0)
    steps: list[ForwardPassMetrics] = []
    async with running_engine(llama, num_blocks=30, enable_prefix_caching=False) as engine:
        engine.subscribe_metrics(steps.append)
        found = await answer_all(engine, prompts, sampling)
    assert found == [greedy_reference(references["llama"], prompt, 40) for prompt in prompts]
    assert sum(step.num_preempted for step in steps) > 0


async def test_stops_at_stop_tokens_and_at_the_context_end(llama: Path, references: References) -> None:
    prompt = random_prompt(3, 30)
    expected = greedy_reference(references["llama"], prompt, 60)
    stop = expected[9]
    first_stop = expected.index(stop)
    async with running_engine(llama, context_length=64) as engine:
        stopped = await answer(
            engine, a_request(prompt, SamplingParams(max_tokens=60, temperature=0.0, stop_token_ids=(stop,)))
        )
        full = await answer(engine, a_request(prompt, SamplingParams(max_tokens=60, temperature=0.0)))
    assert stopped.token_ids == expected[: first_stop + 1]
    assert stopped.last.finish_reason is FinishReason.STOP
    assert full.token_ids == expected[:34]
    assert full.last.finish_reason is FinishReason.LENGTH


async def test_usage_and_timing_come_with_the_last_chunk(llama: Path) -> None:
    async with running_engine(llama) as engine:
        chunks = [chunk async for chunk in engine.generate(a_request(random_prompt(1, 10), generated=[5, 6]))]
    assert all(chunk.usage is None and chunk.timing is None for chunk in chunks[:-1])
    last = chunks[-1]
    assert last.usage is not None
    assert last.timing is not None
    assert (last.usage.num_prompt_tokens, last.usage.num_output_tokens) == (10, 14)
    assert min(last.timing.queue_s, last.timing.prefill_s, last.timing.decode_s) > 0
