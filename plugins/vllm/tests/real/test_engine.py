"""One vLLM: the kit, ``transformers``, adapters, ranks, events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from dynamo_sdk.errors import ConfigError, EngineStartError
from dynamo_sdk.testing import Outcome, check_engine, generate_request, read_all
from dynamo_sdk.types import BlocksStored, KVEventBatch, Role, SamplingParams
from dynamo_sdk_vllm.engine import VllmEngine
from dynamo_sdk_vllm.handover import VllmNixlConnector
from real_engines import checks
from real_engines.adapters import make_adapter, merged
from real_engines.checks import GREEDY, PROMPTS
from real_engines.models import greedy_of, reference

from .conftest import vllm_engine

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    started = vllm_engine(Role.AGGREGATED)
    await started.start()
    yield started
    await started.close()


async def test_greedy_is_that_of_transformers(engine: VllmEngine):
    await checks.check_greedy_is_that_of_transformers(engine)


async def test_a_prompt_that_comes_again_is_cached(engine: VllmEngine):
    prompt = [3 * token % 900 + 20 for token in range(100)]
    first = await read_all(engine, generate_request(prompt, GREEDY))
    second = await read_all(engine, generate_request(prompt, GREEDY))
    assert first.usage is not None
    assert second.usage is not None
    assert (first.usage.num_cached_tokens, second.usage.num_cached_tokens) == (0, 96)
    assert second.token_ids == first.token_ids


async def test_events_say_what_is_held(engine: VllmEngine):
    await checks.check_events_say_what_is_held(engine, block_size=32)


async def test_smaller_priorities_run_first(engine: VllmEngine):
    await checks.check_smaller_priorities_run_first(engine)


async def test_an_adapter_gives_what_merged_weights_give(tmp_path: Path):
    """While the model itself is asked in the same batches."""
    loud = make_adapter(tmp_path / "loud")
    engine = vllm_engine(Role.AGGREGATED, loras=[loud])
    try:
        await engine.start()
        await engine.load_lora(loud)
        sampling = SamplingParams(max_tokens=24, min_tokens=24, temperature=0.0)
        answers: dict[tuple[int, str | None], list[int]] = {}

        async def ask(number: int, lora: str | None) -> None:
            request = replace(generate_request(PROMPTS[number], sampling), lora=lora)
            answers[number, lora] = (await read_all(engine, request)).token_ids

        async with anyio.create_task_group() as tasks:
            for number in range(len(PROMPTS)):
                for lora in (None, "loud"):
                    tasks.start_soon(ask, number, lora)
        base = reference()
        for lora, model in ((None, base), ("loud", merged(loud))):
            for number, prompt in enumerate(PROMPTS):
                assert answers[number, lora] == greedy_of(model, prompt), (lora, number)
    finally:
        await engine.close()


async def test_events_name_the_adapter(tmp_path: Path):
    loud = make_adapter(tmp_path / "loud")
    engine = vllm_engine(Role.AGGREGATED, loras=[loud])
    try:
        await engine.start()
        await engine.load_lora(loud)
        heard: list[str | None] = []
        has_come = anyio.Event()

        def listen(batch: KVEventBatch) -> None:
            heard.extend(event.lora for event in batch.events if isinstance(event, BlocksStored))
            if heard:
                has_come.set()

        engine.subscribe_kv_events(listen)
        await read_all(engine, replace(generate_request(PROMPTS[1], GREEDY), lora="loud"))
        with anyio.fail_after(10):
            await has_come.wait()
        assert set(heard) == {"loud"}
    finally:
        await engine.close()


async def test_two_ranks_have_caches_and_events_of_their_own():
    engine = vllm_engine(Role.AGGREGATED, data_parallel_size=2)
    await checks.check_two_ranks_have_caches_and_events_of_their_own(engine, num_cached=96)


async def test_wrong_arguments_are_said_before_anything_is_loaded():
    engine = vllm_engine(Role.AGGREGATED, max_num_sequences=4)
    with pytest.raises(ConfigError, match="max_num_sequences"):
        await engine.start()
    await engine.close()
    engine = vllm_engine(Role.AGGREGATED, num_blocks=1)
    with pytest.raises(EngineStartError):
        await engine.start()
    await engine.close()


async def test_it_keeps_the_contract(tmp_path: Path):
    adapters = [make_adapter(tmp_path / "one"), make_adapter(tmp_path / "other", seed=2, rank=12)]
    report = await check_engine(
        lambda role: vllm_engine(role, loras=adapters),
        vocab_size=1000,
        connector=VllmNixlConnector(),
        unstartable=lambda role: vllm_engine(role, num_blocks=1),
        loras=[adapter.path for adapter in adapters],
        timeout_s=120,
    )
    print(report)  # noqa: T201
    report.raise_if_failed()
    assert [result.name for result in report.having(Outcome.UNCLAIMED)] == ["seed_continues_after_generated"]
