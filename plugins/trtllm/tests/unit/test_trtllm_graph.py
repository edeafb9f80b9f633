"""Prefill and decode in a graph, through the frontend's own request flow, on the stand-in."""

from __future__ import annotations

import httpx
import pytest
from fake_tensorrt_llm import World

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker, Worker
from dynamo_sdk_trtllm.plugin import dynamo_sdk_engines, dynamo_sdk_kv_connectors

__all__ = ["dynamo_sdk_engines", "dynamo_sdk_kv_connectors"]  # hooks of these graphs


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


@service
class Whole(Worker): ...


@service
class WholeApi(Frontend):
    worker = depends(Whole)


QUESTION = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is a KV block?"}],
    "temperature": 0,
    "max_tokens": 12,
}


async def answer(graph: Graph, *names: str) -> str:
    services = {name: {"engine": "trtllm"} for name in names}
    async with graph.local({"model": {"path": "demo"}, "services": services}) as app:
        url = f"{app.url}/v1/chat/completions"
        async with httpx.AsyncClient(timeout=20) as client:
            response = await client.post(url, json=QUESTION)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.anyio
async def test_disaggregated_equals_aggregated(world: World):
    whole = await answer(Graph(WholeApi, router="round-robin"), "Whole")
    assert not any(asked.disaggregated_params for asked in world.requests)
    both = await answer(Graph(Api, router="round-robin"), "Prefill", "Decode")
    assert both == whole
    kinds = [
        asked.disaggregated_params.request_type for asked in world.requests if asked.disaggregated_params
    ]
    assert kinds[-2:] == ["context_only", "generation_only"]  # before, the frontend's own probe
