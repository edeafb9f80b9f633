"""The conformance checks, on the stand-in. They hold the adapter to our contract; what they say about
TensorRT-LLM is what ``contract.json`` believes."""

from __future__ import annotations

import pytest
from conftest import new_engine
from fake_tensorrt_llm import World

from dynamo_sdk.testing import check_engine, check_kv_connector
from dynamo_sdk.types import GenerateRequest, KVTransferParams
from dynamo_sdk_trtllm.handover import TensorRTConnector
from dynamo_sdk_trtllm.plugin import CONNECTOR


@pytest.mark.anyio
@pytest.mark.parametrize("tokens_per_output", [1, 3])
async def test_the_engine_keeps_the_contract(world: World, tokens_per_output: int):
    world.tokens_per_output = tokens_per_output
    report = await check_engine(new_engine, vocab_size=world.vocab_size)
    report.raise_if_failed()
    assert not world.num_leaked


def test_the_connector_keeps_the_contract():
    def answer(request: GenerateRequest) -> KVTransferParams:
        return KVTransferParams(connector=CONNECTOR, payload=b"x", ttl_s=1.0)

    check_kv_connector(TensorRTConnector, name=CONNECTOR, answer=answer).raise_if_failed()
