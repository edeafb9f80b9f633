"""A started engine for one ``async with``, and requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.types import (
    GenerateChunk,
    GenerateRequest,
    ModelSpec,
    Role,
    SamplingParams,
    TokenLogprobs,
    pack_tokens,
)

GREEDY = SamplingParams(max_tokens=16, temperature=0.0)


@asynccontextmanager
async def started_engine(
    folder: Path, *, role: Role = Role.AGGREGATED, **settings: Any
) -> AsyncGenerator[TorchEngine, None]:
    defaults = {"device": "cpu", "block_size": 4, "num_blocks": 200, "max_num_seqs": 16, "num_threads": 1}
    setup = EngineSetup(model=ModelSpec(name="tiny", path=str(folder)), role=role)
    engine = TorchEngine(setup, TorchConfig(**(defaults | settings)))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def running_engine(folder: Path, **settings: Any) -> AsyncGenerator[TorchEngine, None]:
    """On leaving: no block is in use, and the engine's books add up."""
    async with started_engine(folder, **settings) as engine:
        yield engine
        assert_all_free(engine)


def assert_all_free(engine: TorchEngine) -> None:
    engine.check_integrity()
    load = engine.load()
    assert load is not None
    assert (load.num_running, load.num_waiting, load.num_free_blocks) == (0, 0, load.num_blocks)


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: GenerateChunk = field(default_factory=GenerateChunk)


def a_request(
    prompt: list[int], sampling: SamplingParams = GREEDY, *, generated: list[int] | None = None, **fields: Any
) -> GenerateRequest:
    return GenerateRequest(
        **{"request_id": "r", "model": "tiny"} | fields,
        prompt=pack_tokens(prompt),
        generated=pack_tokens(generated or []),
        sampling=sampling,
    )


async def answer(engine: TorchEngine, request: GenerateRequest) -> Answer:
    found = Answer()
    async for chunk in engine.generate(request):
        assert found.last.finish_reason is None, "a chunk after the last one"
        found.token_ids += chunk.token_ids
        found.logprobs += chunk.logprobs or ()
        found.last = chunk
    assert found.last.finish_reason is not None
    return found


async def answer_all(
    engine: TorchEngine, prompts: list[list[int]], sampling: SamplingParams = GREEDY
) -> list[list[int]]:
    """Greedy (or ``sampling``) tokens of all prompts, run at the same time."""
    requests = [a_request(prompt, sampling, request_id=f"r{i}") for i, prompt in enumerate(prompts)]
    return [found.token_ids for found in await asyncio.gather(*(answer(engine, r) for r in requests))]
