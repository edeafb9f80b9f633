"""Why a request goes where it goes: asked of a running graph, and of the log that it kept."""

from __future__ import annotations

import json
from pathlib import Path

import anyio.to_thread
import pytest

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.cli.explain import ask, explain, table
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.services import Frontend, Worker
from dynamo_sdk.types import Role

pytestmark = pytest.mark.anyio


@service
class Model(Worker): ...


@service
class Api(Frontend):
    model = depends(Model)


async def test_a_graph_explains_and_its_log_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"prompt": [65] * 300, "dynamo": {"session": "alice"}}))
    deploy = {
        "router": "kv",
        "services": {
            "Model": {"engine": "mocker", "replicas": 2, "args": {"block_size": 16, "speedup_ratio": 100.0}},
            "Api": {"args": {"decision_log": str(tmp_path / "log")}},
        },
    }
    async with Graph(Api).local(deploy) as app:
        url = app.url or ""
        [first] = await anyio.to_thread.run_sync(ask, url, str(body))
        [second] = await anyio.to_thread.run_sync(ask, f"{url}/v1", str(body))
        [third] = await anyio.to_thread.run_sync(ask, url, "a prompt in words")
    assert (first.num_tokens, first.num_blocks) == (300, 18)
    assert second.worker == first.worker, "its blocks are there"
    assert second.candidates[0].num_cached_blocks >= 17
    shown = table(second)
    assert second.worker in shown
    assert "prefill_s" in shown
    assert f"next would be {second.runner_up}" in shown
    assert third.num_tokens > 0

    [log] = (tmp_path / "log").iterdir()
    assert b"alice" not in log.read_bytes()
    explain(log=log)
    assert capsys.readouterr().out == "4 of 4 decisions are the same under kv\n"  # one is the canary's
    explain(request="canary", log=log, router="least-loaded")
    out = capsys.readouterr().out
    assert "canary" in out
    assert "least-loaded decides" in out
    explain(request="chatcmpl-canary", log=log)
    assert "went to" in capsys.readouterr().out, "an answer's id begins with its route"
    explain(log=log, router="shadow")
    assert capsys.readouterr().out == "4 of 4 decisions are the same under shadow\n"
    explain(log=log, router="{name: shadow, args: {acting: round-robin}}")
    assert "4 of 4" not in capsys.readouterr().out
    explain(log=log, router="dynamo_sdk.routing.kv:KvRouter")
    assert "4 of 4" in capsys.readouterr().out
    for wrong in ("nope", "{name: shadow, args: {acting: nope}}", "{names: kv}", "{name: kv"):
        with pytest.raises(ConfigError):
            explain(log=log, router=wrong)
    with pytest.raises(ConfigError, match="has no decision of a request 'nobody'"):
        explain(request="nobody", log=log)


@service
class First(Worker):
    role = Role.PREFILL


@service
class Second(Worker):
    role = Role.DECODE


@service
class Both(Frontend):
    first = depends(First)
    second = depends(Second)


async def test_each_leg_is_explained(tmp_path: Path) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"prompt": [65] * 40, "min_tokens": 5, "max_tokens": 9, "stop": ["e", "a"]}))
    mocker = {"engine": "mocker", "replicas": 2, "args": {"speedup_ratio": 100.0}}
    deploy = {"router": "kv", "services": {"First": mocker, "Second": mocker}}
    async with Graph(Both).local(deploy) as app:
        prefill, decode = await anyio.to_thread.run_sync(ask, app.url or "", str(body))
    assert (prefill.pool, decode.pool) == (Role.PREFILL, Role.DECODE)
    assert decode.worker.startswith("Second")
    assert len(decode.candidates) == 2


async def test_what_cannot_be_asked_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a request"):
        explain()
    with pytest.raises(ConfigError, match="does not begin with http"):
        ask("localhost:8000", "x")
    with pytest.raises(ConfigError, match="is the graph running"):
        ask("http://127.0.0.1:9", "x")
    with pytest.raises(ConfigError, match="cannot read a request from"):
        ask("http://127.0.0.1:9", str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="cannot read"):
        explain(log=tmp_path / "none.log")
