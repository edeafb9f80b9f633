"""The life of a frontend: what it has done before it is ready, and others that join it on its port."""

from __future__ import annotations

import httpx
import pytest

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.launch.inprocess import InProcessLauncher
from dynamo_sdk.preprocess.pipeline import ModelPipeline
from dynamo_sdk.services import Frontend, Worker
from dynamo_sdk.types import ModelRecord

pytestmark = pytest.mark.anyio


@service
class Whole(Worker): ...


@service
class Api(Frontend):
    whole = depends(Whole)


async def test_no_client_waits_for_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = ModelPipeline.load

    def counted(record: ModelRecord) -> ModelPipeline:
        loaded.append(record.name)
        return load(record)

    monkeypatch.setattr(ModelPipeline, "load", counted)
    async with InProcessLauncher.app(Graph(Api), overrides=["services.Whole.engine=echo"]):
        assert loaded == ["demo"]


async def test_a_frontend_that_is_added_answers_at_the_same_address() -> None:
    async with InProcessLauncher.app(Graph(Api), overrides=["services.Whole.engine=echo"]) as app:
        assert app.url is not None
        await app.scale_to("Api", 2)
        await app.wait_ready()
        for _ in range(40):  # the kernel leaves one of them out once in a million million runs
            async with httpx.AsyncClient(base_url=app.url) as client:
                body = {"model": "demo", "prompt": [20], "max_tokens": 1}
                assert (await client.post("/v1/completions", json=body)).status_code == 200
                text = (await client.get("/metrics")).text
        counted = [line for line in text.splitlines() if line.startswith("dynamo_frontend_requests_total{")]
        assert len(counted) == 2
        assert sum(float(line.rpartition(" ")[2]) for line in counted) == 40


@pytest.mark.parametrize(
    "name", ["max_prefill_tokens", "max_waiting", "max_waiting_per_tenant", "tenant_quantum"]
)
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -5; allowed is 1 or more"):
        Frontend(**{name: -5})  # type: ignore[arg-type]
