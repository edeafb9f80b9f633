"""The conformance kit, on the stand-in. It holds the adapter to our contract; what it says about
TensorRT-LLM is what ``contract.json`` believes."""

from __future__ import annotations

import pytest
from conftest import new_engine
from fake_tensorrt_llm import World

from dynamo_sdk.interfaces import EngineFacts
from dynamo_sdk.testing import Outcome, check_engine, check_kv_connector, generate_request, read_all
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role
from dynamo_sdk_trtllm.engine import TensorRTEngine
from dynamo_sdk_trtllm.handover import TensorRTConnector
from dynamo_sdk_trtllm.plugin import CONNECTOR


def warm_engine(role: Role, **args: object) -> TensorRTEngine:
    """Has answered once, as a worker's engine has: versions that do not tell their blocks have then."""
    engine = new_engine(role, **args)
    start = engine.start

    async def start_and_answer() -> EngineFacts:
        facts = await start()
        await read_all(engine, generate_request([1]))
        return facts

    engine.start = start_and_answer  # type: ignore[method-assign]
    return engine


@pytest.mark.anyio
@pytest.mark.parametrize("tokens_per_output", [1, 3])
async def test_the_engine_keeps_the_contract(world: World, tokens_per_output: int):
    world.tokens_per_output = tokens_per_output
    report = await check_engine(
        new_engine if world.version == "1.3" else warm_engine,
        vocab_size=world.vocab_size,
        connector=TensorRTConnector(),
        unstartable=lambda role: new_engine(role, path="/models/broken"),
    )
    report.raise_if_failed()
    assert not world.num_leaked


@pytest.mark.anyio
async def test_ranks_keep_the_contract(world: World):
    def factory(role: Role) -> TensorRTEngine:
        make = new_engine if world.version == "1.3" else warm_engine
        return make(role, tensor_parallel_size=2, enable_attention_dp=True)

    report = await check_engine(factory, vocab_size=world.vocab_size, connector=TensorRTConnector())
    report.raise_if_failed()
    checked = {result.name: result.outcome for result in report.results}
    assert checked["ranks_are_those_declared"] is Outcome.PASSED


def test_the_connector_keeps_the_contract():
    def answer(request: GenerateRequest) -> KVTransferParams:
        return KVTransferParams(connector=CONNECTOR, payload=b"x", ttl_s=1.0)

    check_kv_connector(TensorRTConnector, name=CONNECTOR, answer=answer).raise_if_failed()
