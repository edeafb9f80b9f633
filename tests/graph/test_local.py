"""``graph.local()``: the launcher is asked for when it is called, and gets the graph itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dynamo_sdk import Graph
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.local import DeploySource, deploy_text

from .services import Lookup


def test_a_whole_graph_runs_in_this_process() -> None:
    async def use() -> tuple[int, str | None]:
        async with Graph(Lookup).local({"services": {"Lookup": {"args": {"size": 7}}}}) as app:
            return await app.client(Lookup).find("four"), app.url

    assert asyncio.run(use()) == (4, None)


def test_overrides_and_deploy_files_are_read_before_anything_starts(tmp_path: Path) -> None:
    async def use(deploy: DeploySource | None, *overrides: str) -> None:
        async with Graph(Lookup).local(deploy, set=overrides):
            pytest.fail("it should not start")

    file = tmp_path / "deploy.yaml"
    file.write_text("services: {Lookup: {args: {sise: 7}}}")
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        asyncio.run(use(file))
    with pytest.raises(ConfigError, match="did you mean 'Lookup'"):
        asyncio.run(use(None, "services.Lokup.replicas=2"))


def test_the_source_of_a_deploy_file(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("router: kv # ü", encoding="utf-8")
    assert deploy_text(None) == ""
    assert deploy_text(file) == deploy_text(str(file)) == "router: kv # ü"
    assert deploy_text({"router": "kv"}) == '{"router": "kv"}'


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the deploy file '.*missing.yaml': No such file"):
        deploy_text(tmp_path / "missing.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        deploy_text(tmp_path / "binary")
    for value in (object(), float("nan")):
        with pytest.raises(ConfigError, match="only what JSON can say"):
            deploy_text({"services": value})
