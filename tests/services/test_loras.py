"""Adapters from the deploy file to the answer, and those that come and go while the graph runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.errors import ConfigError, InvalidRequest, ModelNotFound
from dynamo_sdk.launch.inprocess import InProcessLauncher
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker, Worker
from dynamo_sdk.types import LoraSpec

pytestmark = pytest.mark.anyio

PROMPT = [20, 30, 40, 50]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@service
class Whole(Worker): ...


@service
class Other(Worker): ...


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    whole = depends(Whole)


@service
class Pair(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


@service
class Two(Frontend):
    whole = depends(Whole)
    other = depends(Other)


ECHO = ["services.Whole.engine=echo", "services.Api.args.lora_endpoints=true", "model.path=demo"]


def adapter(folder: Path, name: str, weights: str = "weights") -> str:
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text("{}")
    (folder / name / "adapter_model.safetensors").write_text(weights)
    return str(folder / name)


class Asker:
    def __init__(self, app: InProcessLauncher, client: httpx.AsyncClient) -> None:
        self.app = app
        self._client = client

    async def get(self, path: str) -> Any:
        return (await self._client.get(path)).json()

    async def models(self) -> dict[str, str | None]:
        """Names and parents."""
        cards = (await self.get("/v1/models"))["data"]
        return {card["id"]: card["parent"] for card in cards}

    async def post(self, path: str, **body: object) -> tuple[int, Any]:
        answer = await self._client.post(path, json=body)
        return answer.status_code, answer.json()

    async def ask(self, model: str, **fields: object) -> tuple[int, Any]:
        """The status, and the token ids or the error."""
        body = {"prompt": PROMPT, "max_tokens": 4, "return_token_ids": True, "ignore_eos": True} | fields
        status, answer = await self.post("/v1/completions", model=model, **body)
        return status, answer["choices"][0]["token_ids"] if status == 200 else answer["error"]


@asynccontextmanager
async def running(graph: Graph, *overrides: str) -> AsyncIterator[Asker]:
    async with InProcessLauncher.app(graph, overrides=overrides) as app:
        assert app.url is not None
        async with httpx.AsyncClient(base_url=app.url, timeout=30) as client:
            yield Asker(app, client)


async def test_adapters_of_the_deploy_file_are_listed_and_answer(tmp_path: Path) -> None:
    sql = adapter(tmp_path, "sql")
    async with running(Graph(Api), *ECHO, f"model.loras.sql={sql}") as asker:
        assert await asker.models() == {"demo": None, "sql": "demo"}
        assert await asker.ask("sql") == (200, PROMPT[::-1])
        assert await asker.ask("demo") == (200, PROMPT)
        status, error = await asker.ask("poet")
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "there is 'demo', 'sql'" in error["message"]
        status, answer = await asker.post(
            "/v1/chat/completions", model="sql", messages=[{"role": "user", "content": "hi"}], max_tokens=2
        )
        assert (status, answer["model"]) == (200, "sql")
        assert (await asker.post("/v1/embeddings", model="sql", input=[1, 2]))[0] == 200


async def test_an_adapter_goes_through_both_legs(tmp_path: Path) -> None:
    sql = adapter(tmp_path, "sql")
    engines = [f"services.{name}.engine=echo" for name in ("Prefill", "Decode")]
    async with running(
        Graph(Pair), *engines, "model.path=demo", f"model.loras.sql={sql}", "router=kv"
    ) as asker:
        assert await asker.ask("sql") == (200, PROMPT[::-1])
        assert await asker.ask("demo") == (200, PROMPT)


async def test_what_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter path '.*' has no adapter_config\.json"):
        async with running(Graph(Api), *ECHO, f"model.loras.sql={tmp_path}"):
            pass
    sql = adapter(tmp_path, "sql")
    mocker = ["services.Whole.engine=mocker", "model.path=demo", f"model.loras.sql={sql}"]
    with pytest.raises(ConfigError, match="engine 'mocker' of service Whole serves none"):
        async with running(Graph(Api), *mocker):
            pass


async def test_adapters_come_and_go(tmp_path: Path) -> None:
    sql = adapter(tmp_path, "sql")
    async with running(Graph(Api), *ECHO, "services.Whole.replicas=2") as asker:
        for _ in range(2):  # the second time nothing changes
            assert await asker.post(LOAD, lora_name="sql", lora_path=sql) == (
                200,
                {"id": "sql", "parent": "demo", "status": "loaded", "num_workers": 2},
            )
        assert await asker.models() == {"demo": None, "sql": "demo"}
        answers = await asyncio.gather(*(asker.ask("sql") for _ in range(6)))
        assert answers == [(200, PROMPT[::-1])] * 6
        status, answer = await asker.post(UNLOAD, lora_name="sql")
        assert (status, answer["status"], answer["num_workers"]) == (200, "unloaded", 2)
        assert (await asker.ask("sql"))[0] == 404
        assert (await asker.post(UNLOAD, lora_name="sql"))[0] == 404
        assert await asker.models() == {"demo": None}


async def test_a_planned_adapter_that_was_unloaded_is_not_found(tmp_path: Path) -> None:
    async with running(Graph(Api), *ECHO, f"model.loras.sql={adapter(tmp_path, 'sql')}") as asker:
        assert (await asker.post(UNLOAD, lora_name="sql"))[0] == 200
        assert (await asker.ask("sql"))[0] == 404
        await asker.app.scale_to("Whole", 0)
        assert (await asker.ask("sql"))[0] == 503, "it comes back with the worker"


async def test_unloading_lets_requests_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    slow = [*ECHO, "services.Whole.args.delay_ms=5", f"model.loras.sql={adapter(tmp_path, 'sql')}"]
    async with running(Graph(Api), *slow) as asker, anyio.create_task_group() as tasks:
        answers: list[tuple[int, Any]] = []

        async def ask() -> None:
            answers.append(await asker.ask("sql", max_tokens=100))

        tasks.start_soon(ask)
        async with aclosing(asker.app.client(Whole).loads()) as loads:
            async for load in loads:
                if load.num_running:
                    break
        assert (await asker.post(UNLOAD, lora_name="sql"))[0] == 200
        await anyio.wait_all_tasks_blocked()
    assert answers == [(200, (PROMPT[::-1] * 25))]


async def test_what_is_being_prefilled_is_still_decoded(tmp_path: Path) -> None:
    settings = [
        *(f"services.{name}.engine=echo" for name in ("Prefill", "Decode")),
        *("services.Prefill.args.delay_ms=300", "services.Decode.args.delay_ms=50", "model.path=demo"),
        *("services.Pair.args.lora_endpoints=true", f"model.loras.sql={adapter(tmp_path, 'sql')}"),
    ]
    async with running(Graph(Pair), *settings) as asker, anyio.create_task_group() as tasks:
        answers: list[tuple[int, Any]] = []

        async def ask() -> None:
            answers.append(await asker.ask("sql"))

        tasks.start_soon(ask)
        async with aclosing(asker.app.client(Prefill).loads()) as loads:
            async for load in loads:
                if load.num_running:
                    break
        assert (await asker.post(UNLOAD, lora_name="sql"))[0] == 200
    assert answers == [(200, PROMPT[::-1])]


async def test_where_one_worker_refuses_none_keeps_it(tmp_path: Path) -> None:
    sql = adapter(tmp_path, "sql")
    async with running(Graph(Api), *ECHO, "services.Whole.replicas=2") as asker:
        first, second = [w for w in asker.app._fleet.workers.values() if w.service == "Whole"]
        asker.app.client(Whole)
        client = asker.app._clients["Whole"]
        other = LoraSpec(name="sql", path=adapter(tmp_path, "other", "other weights"))
        await client.call(first.worker_id, "load_lora", other)
        status, answer = await asker.post(LOAD, lora_name="sql", lora_path=sql)
        assert status == 400
        assert "unload it first" in answer["error"]["message"] or "weights" in answer["error"]["message"]
        with pytest.raises(ModelNotFound):
            await client.call(second.worker_id, "unload_lora", "sql")
        with pytest.raises(InvalidRequest, match="its weights of model 'sql' is"):
            await client.call(second.worker_id, "load_lora", LoraSpec(name="sql", path=sql))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"lora_name": "demo", "lora_path": "sql"}, 400, "clients mean a model by 'demo'"),
        ({"lora_name": "", "lora_path": "sql"}, 400, "the adapter's name is empty"),
        ({"lora_name": "x", "lora_path": "./nowhere"}, 400, "no folder './nowhere'"),
        ({"lora_name": "x"}, 400, "lora_path is missing"),
        ({"lora_name": "x", "lora_path": "sql", "model": "other"}, 404, "no model 'other' (models: demo)"),
    ],
)
async def test_bad_requests_are_said_to_be(
    body: dict[str, str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tmp_path, "sql")
    monkeypatch.chdir(tmp_path)
    async with running(Graph(Api), *ECHO) as asker:
        answer = await asker.post(LOAD, **body)
        assert (answer[0], said in answer[1]["error"]["message"]) == (status, True), answer
        assert await asker.models() == {"demo": None}


async def test_with_several_models_the_request_names_one(tmp_path: Path) -> None:
    deploy = [
        *(
            "services.Whole.engine=echo",
            "services.Other.engine=echo",
            "services.Two.args.lora_endpoints=true",
        ),
        *("models.a.path=demo", "models.b.path=demo", "services.Whole.model=a", "services.Other.model=b"),
    ]
    sql = adapter(tmp_path, "sql")
    async with running(Graph(Two), *deploy) as asker:
        status, answer = await asker.post(LOAD, lora_name="sql", lora_path=sql)
        assert (status, answer["error"]["message"]) == (400, "model is missing; several are served: a, b")
        assert (await asker.post(LOAD, lora_name="sql", lora_path=sql, model="b"))[0] == 200
        assert await asker.models() == {"a": None, "b": None, "sql": "b"}
        status, answer = await asker.post(LOAD, lora_name="sql", lora_path=sql, model="a")
        assert (status, "its base model of 'sql' is a" in answer["error"]["message"]) == (400, True)
        assert await asker.ask("sql") == (200, PROMPT[::-1])


async def test_the_routes_are_there_only_where_they_are_allowed(tmp_path: Path) -> None:
    async with running(Graph(Api), ECHO[0]) as asker:
        status, answer = await asker.post(LOAD, lora_name="sql", lora_path=adapter(tmp_path, "sql"))
        assert (status, answer["error"]["code"]) == (404, "not_found")
        assert not {LOAD, UNLOAD} & set((await asker.get("/openapi.json"))["paths"])
    async with running(Graph(Api), *ECHO) as asker:
        described = await asker.get("/openapi.json")
        body = described["paths"][LOAD]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = described["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        assert schema["required"] == ["lora_name", "lora_path"]
        assert UNLOAD in described["paths"]


async def test_a_worker_that_serves_none_says_so(tmp_path: Path) -> None:
    mocker = ["services.Whole.engine=mocker", ECHO[1]]
    async with running(Graph(Api), *mocker) as asker:
        status, answer = await asker.post(LOAD, lora_name="sql", lora_path=adapter(tmp_path, "sql"))
        assert (status, "'mocker', which serves no LoRA adapters" in answer["error"]["message"]) == (
            400,
            True,
        )
