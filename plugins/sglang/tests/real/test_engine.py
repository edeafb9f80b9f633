"""One SGLang: ``transformers``, its cache and events, adapters, ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from dynamo_sdk.errors import ConfigError, InvalidRequest, ModelNotFound
from dynamo_sdk.testing import generate_request, read_all
from dynamo_sdk.types import LoraSpec, Role, SamplingParams
from dynamo_sdk_sglang.engine import SglangEngine
from real_engines import checks
from real_engines.checks import GREEDY, PROMPTS
from real_engines.models import reference

from .conftest import make_adapter, sglang_engine

pytestmark = pytest.mark.anyio


async def test_greedy_is_that_of_transformers(engine: SglangEngine):
    await checks.check_greedy_is_that_of_transformers(engine)


async def test_logprobs_are_those_of_transformers(engine: SglangEngine):
    """Before temperature, as the contract has it."""
    prompt = PROMPTS[1]
    sampling = SamplingParams(max_tokens=1, temperature=2.0, seed=5, logprobs=3)
    (entry,) = (await read_all(engine, generate_request(prompt, sampling))).logprobs
    model = reference()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    best = torch.log_softmax(logits, -1).topk(3)
    assert [token for token, _ in entry.top] == best.indices.tolist()
    assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_events_say_what_is_held(engine: SglangEngine):
    await checks.check_events_say_what_is_held(engine, block_size=16)


async def test_smaller_priorities_run_first(engine: SglangEngine):
    await checks.check_smaller_priorities_run_first(engine)


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
    await checks.check_two_ranks_have_caches_and_events_of_their_own(engine, num_cached=112)


async def test_wrong_arguments_are_said_before_anything_is_loaded():
    engine = sglang_engine(Role.AGGREGATED, max_running_request=4)
    with pytest.raises(ConfigError, match="max_running_request"):
        await engine.start()
    await engine.close()
