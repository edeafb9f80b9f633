from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from dynamo_sdk.cli.plugins import plugins, print_tables, render_json
from dynamo_sdk.plugins import EngineDescriptor, Kind, Registry, hookimpl


class Acme:
    @hookimpl
    def dynamo_sdk_engines(self) -> list[EngineDescriptor]:
        return [EngineDescriptor(name="echo", factory="acme:Engine", summary="another [bold]echo[/bold]")]

    @hookimpl
    def dynamo_sdk_engine(self) -> None:
        """Misspelt."""


def printed(registry: Registry) -> str:
    out = io.StringIO()
    print_tables(registry, Console(file=out, width=200))
    return out.getvalue()


def test_the_table_names_everything_that_is_installed() -> None:
    registry = Registry.of()
    text = printed(registry)
    for name in [*registry.engines, *registry.routers, *registry.launchers, *registry.kv_connectors]:
        assert name in text
    assert "see below" not in text
    assert "problem " not in text


def test_problems_are_shown_with_their_rule_and_place() -> None:
    text = printed(Registry.of(Acme()))
    assert "there is no hook dynamo_sdk_engine; did you mean dynamo_sdk_engines?" in text
    assert "engine 'echo' is also offered by" in text
    assert f"{Path(__file__).name}:" in text.replace("\n", "")
    assert "another [bold]echo[/bold]" in text


def test_json_lists_every_offer_with_its_problems() -> None:
    document = json.loads(render_json(Registry.of(Acme())))
    echoes = [row for row in document["plugins"] if (row["kind"], row["name"]) == ("engine", "echo")]
    assert {row["distribution"] for row in echoes} == {"dynamo-sdk", "local"}
    assert all(row["problems"] for row in echoes)
    (torch,) = [row for row in document["plugins"] if row["name"] == "torch"]
    assert torch["version"]
    assert {problem["source"]["plugin"] for problem in document["problems"]} == {"Acme", "builtins"}


def test_json_is_the_same_every_time() -> None:
    assert render_json(Registry.of(Acme())) == render_json(Registry.of(Acme()))


def test_in_a_pipe_each_plugin_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    app = typer.Typer()
    app.command()(plugins)
    lines = CliRunner().invoke(app, catch_exceptions=False).output.splitlines()
    registry = Registry.discover()
    for kind in Kind:
        for descriptor, _ in registry.catalogue(kind).offers():
            assert any(descriptor.name in line and descriptor.summary in line for line in lines)


def test_a_terminal_of_80_columns_cuts_no_name() -> None:
    registry = Registry.of()
    out = io.StringIO()
    print_tables(registry, Console(file=out, width=80))
    for name in [*registry.engines, *registry.routers]:
        assert name in out.getvalue()
