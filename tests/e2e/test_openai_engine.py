"""``engine: openai`` in front of a server that runs already: one of ours, in processes of its own."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest

from dynamo_sdk.engines.openai.config import OpenAIConfig
from dynamo_sdk.engines.openai.engine import OpenAIEngine
from dynamo_sdk.errors import EngineStartError
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import Outcome, check_engine, generate_request, read_all
from dynamo_sdk.types import ModelSpec, Role, SamplingParams

from .running import GRAPHS
from .serving import Served, serve

pytestmark = pytest.mark.anyio

KNOWN_GAPS = {
    "logprobs_match_tokens",  # our frontend names alternatives by their text, which is no id
}

SETUP = EngineSetup(model=ModelSpec(name="demo", path="."), role=Role.AGGREGATED)


def engine_of(url: str, **args: object) -> OpenAIEngine:
    return OpenAIEngine(SETUP, OpenAIConfig.model_validate({"url": url, "context_length": 2048, **args}))


async def test_it_keeps_the_contract(aggregated: Served):
    report = await check_engine(
        lambda role: engine_of(aggregated.url), roles=[Role.AGGREGATED], vocab_size=1000, is_exact=True
    )
    failed = {result.name for result in report.results if result.outcome == "failed"}
    assert failed == KNOWN_GAPS, str(report)
    assert [result.name for result in report.having(Outcome.UNCLAIMED)] == ["seed_continues_after_generated"]


async def test_the_server_says_how_long_a_context_it_takes(aggregated: Served):
    engine = engine_of(aggregated.url, context_length=None)
    facts = await engine.start()
    await engine.close()
    async with httpx.AsyncClient() as client:
        [model] = (await client.get(f"{aggregated.url}/v1/models")).json()["data"]
    assert facts.context_length == model["context_length"]


async def test_the_server_stops_when_the_stream_is_closed(aggregated: Served):
    engine = engine_of(aggregated.url)
    await engine.start()
    sampling = SamplingParams(max_tokens=1500, temperature=0.0, ignore_eos=True)
    stream = engine.generate(generate_request(range(10, 20), sampling))
    await anext(stream)
    assert await num_inflight(aggregated.url) == 1
    await stream.aclose()
    with anyio.fail_after(10):
        while await num_inflight(aggregated.url):
            await anyio.lowlevel.checkpoint()
    await engine.close()


async def num_inflight(url: str) -> int:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("dynamo_frontend_inflight_requests{")]
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))


async def test_a_graph_in_front_of_a_graph_says_the_same(aggregated: Served):
    body = {"model": "demo", "prompt": list(range(10, 40)), "max_tokens": 24, "temperature": 0}
    words = [
        "services.Whole.engine=openai",
        f"services.Whole.args.url={aggregated.url}",
    ]
    with serve(f"{GRAPHS}:aggregated", *[part for word in words for part in ("--set", word)]) as front:
        async with httpx.AsyncClient(timeout=30) as client:
            answers = [
                (await client.post(f"{url}/v1/completions", json=body | {"return_token_ids": True})).json()
                for url in (front.url, aggregated.url)
            ]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["completion_tokens"] == answers[1]["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"url": "http://127.0.0.1:9"}, "does not serve"),
        ({"model": "nope"}, "no model 'nope' .*demo"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE is not set"),
    ],
)
async def test_what_cannot_be_served_is_said_at_the_start(
    aggregated: Served, args: dict[str, object], message: str
):
    engine = engine_of(**{"url": aggregated.url, **args})  # type: ignore[arg-type]
    with pytest.raises(EngineStartError, match=message):
        await engine.start()
    await engine.close()


async def test_the_context_is_the_models_where_the_server_does_not_say_it(aggregated: Served, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 77}')
    setup = EngineSetup(model=ModelSpec(name="demo", path=str(tmp_path)), role=Role.AGGREGATED)
    engine = OpenAIEngine(setup, OpenAIConfig(url=aggregated.url))
    assert (await engine.start()).context_length in (77, 2048)
    assert (await read_all(engine, generate_request([11]))).usage is not None
    await engine.close()
