"""What a frontend has done before it is ready."""

from __future__ import annotations

import pytest

from dynamo_sdk import Graph, depends, service
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
