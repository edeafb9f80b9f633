"""The shipped model: real weights, a real end token, prompts up to nearly the whole context."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

import dynamo_sdk
from dynamo_sdk.types import FinishReason, SamplingParams

from .models import load_reference
from .running import a_request, answer, running_engine

FOLDER = Path(dynamo_sdk.__file__).parent / "demo_model"
LENGTHS = (1, 2, 15, 16, 17, 100, 700, 2000)


@pytest.mark.anyio
async def test_equals_transformers_at_every_length() -> None:
    model = load_reference(FOLDER)
    generator = torch.Generator().manual_seed(1)
    longest = torch.randint(2, model.config.vocab_size, (max(LENGTHS),), generator=generator).tolist()
    prompts = [longest[:length] for length in LENGTHS]  # shared prefixes
    sampling = SamplingParams(max_tokens=24, temperature=0.0, logprobs=0)
    requests = [a_request(prompt, sampling, request_id=f"r{i}") for i, prompt in enumerate(prompts)]
    async with running_engine(FOLDER, block_size=16, num_blocks=400, max_num_batched_tokens=512) as engine:
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
        again = await answer(engine, requests[-1])
    assert again.token_ids == found[-1].token_ids
    assert again.last.usage is not None
    assert again.last.usage.num_cached_tokens == 1984
    for prompt, ours in zip(prompts, found, strict=True):
        with torch.inference_mode():
            output = model(torch.tensor([prompt + ours.token_ids])).logits[0]
        expected = output[len(prompt) - 1 : -1]
        assert expected.argmax(-1).tolist() == ours.token_ids
        chosen = expected.log_softmax(-1).gather(-1, torch.tensor(ours.token_ids)[:, None])[:, 0]
        assert [one.logprob for one in ours.logprobs] == pytest.approx(chosen.tolist(), abs=1e-4)
        is_ended = ours.token_ids[-1] == model.config.eos_token_id
        assert ours.last.finish_reason is (FinishReason.STOP if is_ended else FinishReason.LENGTH)
