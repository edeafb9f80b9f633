"""The adapter on vLLMs of two ages, neither of which is real."""

from __future__ import annotations

import logging

import pytest
from fake_vllm import NewAsyncLLM, OldSamplingParams, install
from msgspec.structs import replace

from dynamo_sdk.errors import EngineStartError, InvalidRequest
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import check_engine, generate_request, read_all
from dynamo_sdk.types import FinishReason, ModelSpec, Role
from dynamo_sdk_vllm.config import VllmConfig
from dynamo_sdk_vllm.engine import VllmEngine
from dynamo_sdk_vllm.handover import CONNECTOR, VllmNixlConnector

pytestmark = pytest.mark.anyio

NOT_IN_THE_FAKES = {
    "kv_events_name_parents_first",
    "kv_events_speak_of_real_blocks",
    "logit_bias_is_honoured",
    "narrow_sampling_is_greedy",
    "strange_sampling_is_refused",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[False, True], ids=["old", "new"])
def is_new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    logging.getLogger("dynamo_sdk.engines.zmq_events").setLevel(logging.ERROR)
    install(monkeypatch, is_new=request.param)
    return bool(request.param)


def engine_of(role: Role, **args: object) -> VllmEngine:
    connector = None if role is Role.AGGREGATED else CONNECTOR
    setup = EngineSetup(
        model=ModelSpec(name="m", path="/models/m"),
        role=role,
        connector=connector,
        connector_args={} if connector is None else VllmNixlConnector().engine_args(role),
    )
    return VllmEngine(setup, VllmConfig.model_validate(args))


async def test_it_keeps_the_contract(*, is_new: bool):
    report = await check_engine(engine_of, roles=[Role.AGGREGATED], vocab_size=50)
    failed = {result.name for result in report.results if result.outcome == "failed"}
    assert failed <= NOT_IN_THE_FAKES, str(report)


async def test_prefill_asks_for_a_ticket_and_hands_it_over(*, is_new: bool):
    engine = engine_of(Role.PREFILL)
    await engine.start()
    answer = await read_all(engine, generate_request([1, 2, 3], role=Role.PREFILL))
    assert answer.finish_reason is FinishReason.HANDOVER
    assert answer.kv_transfer is not None
    assert engine._llm.args.kv_transfer_config.kv_role == "kv_producer"
    assert engine._llm.args.kv_transfer_config.kv_connector_extra_config == {"kv_lease_duration": 30.0}
    load = engine.load()
    assert load is not None
    assert load.num_free_blocks == 90, "what was handed over is held, as far as vLLM has said"
    await engine.close()


async def test_adapters_of_a_version_that_has_them(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, is_new=True)
    engine = engine_of(Role.AGGREGATED, loras={"a": "/a"})
    await engine.start()
    request = replace(generate_request([1, 2, 3]), lora="a")
    await read_all(engine, request)
    llm = engine._llm
    assert isinstance(llm, NewAsyncLLM)
    assert llm.asked[-1]["lora"].lora_path == "/a"
    assert isinstance(llm.asked[-1]["params"], OldSamplingParams)
    with pytest.raises(InvalidRequest, match="cannot be loaded"):
        await engine.load_lora("b", "/nowhere")
    await engine.unload_lora("a")
    with pytest.raises(InvalidRequest, match="loaded: none"):
        await read_all(engine, request)
    await engine.close()
    assert llm.is_shut_down


async def test_without_vllm_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm.config", None)
    engine = engine_of(Role.AGGREGATED)
    with pytest.raises(EngineStartError, match=r"dynamo-sdk-vllm\[engine\].*services\.X\.python"):
        await engine.start()
    await engine.close()
