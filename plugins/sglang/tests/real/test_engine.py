"""One SGLang: ``transformers``, its cache and events, adapters, ranks."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM

from dynamo_sdk.errors import ConfigError, InvalidRequest, ModelNotFound
from dynamo_sdk.testing import generate_request, read_all
from dynamo_sdk.types import BlocksStored, KVEventBatch, LoraSpec, Role, SamplingParams
from dynamo_sdk_sglang.engine import SglangEngine

from .conftest import make_adapter, model_folder, sglang_engine

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
PROMPTS = [list(range(10, 17)), list(range(10, 138)), [7 * token % 1000 + 10 for token in range(300)]]


async def test_greedy_is_that_of_transformers(engine: SglangEngine):
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    for prompt in PROMPTS:
        with torch.inference_mode():
            whole = model.generate(
                torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
            )
        expected = whole[0, len(prompt) :].tolist()
        request = generate_request(prompt, SamplingParams(max_tokens=24, min_tokens=24, temperature=0.0))
        assert (await read_all(engine, request)).token_ids == expected


async def test_logprobs_are_those_of_transformers(engine: SglangEngine):
    """Before temperature, as the contract has it."""
    prompt = PROMPTS[1]
    sampling = SamplingParams(max_tokens=1, temperature=2.0, seed=5, logprobs=3)
    (entry,) = (await read_all(engine, generate_request(prompt, sampling))).logprobs
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    best = torch.log_softmax(logits, -1).topk(3)
    assert [token for token, _ in entry.top] == best.indices.tolist()
    assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_events_say_what_is_held(engine: SglangEngine):
    """One listener from now on, a snapshot of what was before; salts reach every block."""
    batches: list[KVEventBatch] = []
    has_come = anyio.Event()

    def listen(batch: KVEventBatch) -> None:
        batches.append(batch)
        has_come.set()

    engine.subscribe_kv_events(listen)
    request = generate_request([5 * token % 800 + 30 for token in range(100)], GREEDY)
    await read_all(engine, replace(request, cache_salt="tenant"))
    with anyio.fail_after(10):
        await has_come.wait()
    events = [event for batch in batches for event in batch.events if isinstance(event, BlocksStored)]
    assert events[0].parent_hash is None
    assert {event.cache_salt for event in events} == {"tenant"}
    assert {event.block_size for event in events} == {16}
    (snapshot,) = engine.kv_snapshot()
    held = [event for event in snapshot.events if isinstance(event, BlocksStored)]
    assert names_of(held) >= names_of(events)


def names_of(events: list[BlocksStored]) -> set[int | bytes]:
    return {name for event in events for name in event.block_hashes}


async def test_smaller_priorities_run_first(engine: SglangEngine):
    """With eight at once, the ninth to be finished is the one that came last and was urgent."""
    done: list[int] = []

    async def ask(number: int, priority: int) -> None:
        request = generate_request([number + 50] * 40, GREEDY)
        await read_all(engine, replace(request, priority=priority))
        done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(24):
            tasks.start_soon(ask, number, -1 if number == 23 else 5)
    assert done.index(23) < 16


async def test_a_token_that_is_none_does_not_end_the_scheduler(engine: SglangEngine):
    with pytest.raises(InvalidRequest, match="vocabulary"):
        await read_all(engine, generate_request([10, 1_000_000], GREEDY))
    await engine.probe()


async def test_adapters_are_loaded_used_and_unloaded(tmp_path: Path):
    loud = make_adapter(tmp_path / "loud")
    engine = sglang_engine(Role.AGGREGATED, loras=[loud])
    try:
        await engine.start()
        base = generate_request(PROMPTS[1], GREEDY)
        asking = {name: replace(base, lora=name, request_id=name) for name in ("loud", "quiet")}
        with pytest.raises(ModelNotFound, match="loaded: none"):
            await read_all(engine, asking["loud"])
        await engine.load_lora(loud)
        plain = (await read_all(engine, base)).token_ids
        changed = (await read_all(engine, asking["loud"])).token_ids
        assert changed != plain
        await engine.unload_lora("loud")
        with pytest.raises(ModelNotFound, match="loaded: none"):
            await read_all(engine, asking["loud"])
        await engine.load_lora(replace(loud, name="quiet"))
        answer = await read_all(engine, asking["quiet"])
        assert answer.token_ids == changed
        assert answer.usage is not None
        assert answer.usage.num_cached_tokens == 0, "what the other adapter left is not used"
        with pytest.raises(InvalidRequest):
            await engine.load_lora(LoraSpec(name="nowhere", path=str(tmp_path / "nowhere")))
        assert (await read_all(engine, base)).token_ids == plain
    finally:
        await engine.close()


async def test_two_ranks_have_caches_and_events_of_their_own():
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    base = sglang_engine(Role.AGGREGATED)
    engine = sglang_engine(Role.AGGREGATED, dp_size=2, environment={**base.config.environment, **environment})
    try:
        facts = await engine.start()
        assert facts.dp_size == 2
        heard_of = {0: anyio.Event(), 1: anyio.Event()}
        engine.subscribe_kv_events(lambda batch: heard_of[batch.dp_rank].set())
        request = generate_request(PROMPTS[1], GREEDY)
        cached = {}
        for number, rank in enumerate((0, 1, 1)):
            ranked = replace(request, dp_rank=rank, request_id=f"rank-{number}")
            usage = (await read_all(engine, ranked)).usage
            assert usage is not None
            cached[number] = usage.num_cached_tokens
        assert cached == {0: 0, 1: 0, 2: 112}
        with anyio.fail_after(10):
            for has_come in heard_of.values():
                await has_come.wait()
        with pytest.raises(InvalidRequest):
            await read_all(engine, replace(request, dp_rank=7, request_id="rank-7"))
    finally:
        await engine.close()


async def test_wrong_arguments_are_said_before_anything_is_loaded():
    engine = sglang_engine(Role.AGGREGATED, max_running_request=4)
    with pytest.raises(ConfigError, match="max_running_request"):
        await engine.start()
    await engine.close()
