"""The pages name what there is: files, rooms, links, fields, options, limits, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

from dynamo_sdk import __version__
from dynamo_sdk.engines.mocker.tier_config import SPEEDS
from dynamo_sdk.flow.request_flow import FlowState
from dynamo_sdk.graph import deploy
from dynamo_sdk.interfaces import LaunchOptions
from dynamo_sdk.launch.restarts import RestartPolicy
from dynamo_sdk.metrics import ALL_METRICS
from dynamo_sdk.plugins import Registry
from dynamo_sdk.runtime import wire
from dynamo_sdk.services.openai import protocol, validation
from dynamo_sdk.services.openai.app import OpenAIApp
from dynamo_sdk.services.openai.limits import HttpLimits
from dynamo_sdk.stores import PeerStoreConfig, S3StoreConfig
from dynamo_sdk.types.plan import Origin

from .pages import PAGES, ROOT, code_words, page, section, table_rows

PACKAGE = ROOT / "dynamo_sdk"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")

_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for link in _LINK.findall(file.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        there = (file.parent / target).resolve() if target else file
        assert there.exists(), f"{file.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{file.name} links to {link}"


def test_the_readme_links_every_page() -> None:
    links = set(_LINK.findall(README))
    assert {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")} <= links


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["project"]["version"] == __version__


def test_extras_are_those_that_exist() -> None:
    rows = [row[0].strip("`") for row in table_rows(section(README, "Installing"))]
    assert rows == ["none", *(f"[{extra}]" for extra in PROJECT["project"]["optional-dependencies"])]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_metrics_exist(file: Path) -> None:
    known = {metric.name for metric in ALL_METRICS}
    named = set(re.findall(r"`(dynamo_(?:frontend|component)_\w+)`", file.read_text(encoding="utf-8")))
    assert named <= known


# -- architecture.md


def test_every_room_is_described() -> None:
    rooms = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    named = {row[0].strip("`") for row in table_rows(section(page("architecture.md"), "Rooms"))}
    assert named == {f"{room}/" for room in rooms} | {"errors.py"}


def test_the_layers_are_those_that_are_checked() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    assert "\n".join(contract["layers"]) in page("architecture.md")


def test_named_files_exist() -> None:
    text = page("architecture.md")
    named = set(re.findall(r"\b[a-z_]+(?:/[a-z_]+)*/[a-z_]+\.py\b", text))
    assert len(named) > 30
    assert [name for name in named if not (PACKAGE / name).is_file()] == []


def test_states_and_frames_are_complete() -> None:
    text = page("architecture.md")
    in_states = code_words(section(text, "States of a request"))
    assert {state.name for state in FlowState} <= set(in_states)
    frames = {frame.__name__ for frame in wire.Frame.__args__}
    assert {word for row in table_rows(section(text, "The wire")) for word in code_words(row[0])} == frames


# -- graph.md


def keys_of(model: type[BaseModel], path: str) -> set[str]:
    return {f"{path}{name}" for name in model.model_fields}


def test_every_key_of_a_deploy_file_is_described() -> None:
    rows = table_rows(section(page("graph.md"), "The deploy file"))
    described = {word for row in rows for word in code_words(row[0])} - set(Origin)
    real = (
        keys_of(deploy.DeployFile, "")
        | keys_of(deploy.ModelSection, "model.")
        | keys_of(deploy.ModelEntry, "models.NAME.")
        | keys_of(deploy.PolicySection, "router.")
        | keys_of(deploy.PolicySection, "planner.")
        | keys_of(deploy.KVSection, "kv.")
        | keys_of(deploy.TransferSection, "kv.transfer.")
        | keys_of(deploy.ServiceSection, "services.NAME.")
    )
    assert described == real - {"kv", "kv.transfer", "services"}


def test_every_key_of_a_tier_is_described() -> None:
    text = page("kv.md")
    bucket = section(text, "A bucket: `s3`")
    rows = table_rows(text.replace(bucket, ""))
    assert {word for row in rows for word in code_words(row[0])} == keys_of(deploy.TierSection, "")
    rows = table_rows(bucket)
    assert {word for row in rows for word in code_words(row[0])} == keys_of(S3StoreConfig, "") - {
        "block_bytes"
    }
    others = set(code_words(section(text, "Other workers' blocks: `shared`")))
    assert keys_of(PeerStoreConfig, "") - {"block_bytes"} <= others


def test_every_origin_is_described() -> None:
    rows = table_rows(section(page("graph.md"), "The deploy file"))
    assert [row[0].strip("`") for row in rows[: len(Origin)]] == [
        "default", "plugin", "graph", "deploy file", "command line",
    ]  # fmt: skip
    assert {row[0].strip("`") for row in rows[: len(Origin)]} == set(Origin)


# -- engines.md


BUILTINS = Registry.of()


def test_every_engine_is_described() -> None:
    headings = re.findall(r"^## (.+)$", page("engines.md"), re.MULTILINE)
    assert sorted(headings) == sorted([*BUILTINS.engines, "Others"])


@pytest.mark.parametrize("engine", BUILTINS.engines)
def test_engine_arguments_are_complete(engine: str) -> None:
    config = BUILTINS.load_config(BUILTINS.engines[engine])
    assert config is not None
    rows = table_rows(section(page("engines.md"), engine))
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows}
    real = {
        name: "required"
        if field.is_required()
        else "none"
        if field.default is None
        else str(field.default).replace("True", "true").replace("False", "false")
        for name, field in config.model_fields.items()
    }
    assert shown == real


# -- simulate.md


def test_speeds_of_simulated_tiers_are_those_that_are_used() -> None:
    rows = table_rows(section(page("simulate.md"), "Tiers"))
    shown = {row[0].strip("`"): [float(cell) for cell in row[1:5]] for row in rows}
    assert shown == {
        kind: [speed.latency_ms, speed.read_gb_per_s, speed.write_gb_per_s, speed.num_channels]
        for kind, speed in SPEEDS.items()
    }


# -- http.md


def test_routes_are_complete() -> None:
    class NoBackend:
        pass

    routes = {
        f"{method} {path}"
        for path, by_method in OpenAIApp(NoBackend())._routes.items()  # type: ignore[arg-type]
        for method in by_method
    }
    shown = {row[0].strip("`") for row in table_rows(section(page("http.md"), "Routes"))}
    assert shown == routes | {"GET /v1/models/{id}"}


def test_fields_are_complete() -> None:
    text = section(page("http.md"), "Fields")
    shown = {word for row in table_rows(text) for word in code_words(row[0])}
    refused = set(code_words(text[text.index("`not_supported`") : text.index("(`response_format`")]))
    refused -= {"not_supported"}
    assert refused == set(validation._NEUTRAL) | {"response_format", "best_of"}
    types = (protocol.ChatRequest, protocol.CompletionRequest, protocol.EmbeddingRequest)
    assert shown | refused == {field for request in types for field in request.__struct_fields__}
    assert not shown & refused


def test_limits_are_complete() -> None:
    rows = table_rows(section(page("http.md"), "Limits"))
    shown = {row[0].partition(" ")[0].strip("`"): row[1] for row in rows}
    assert shown == {name: str(value) for name, value in msgspec.structs.asdict(HttpLimits()).items()}


def test_ranges_are_those_that_are_checked() -> None:
    text = section(page("http.md"), "Fields")
    rows = {word: row[1] for row in table_rows(text) for word in code_words(row[0])}
    assert rows["n"].startswith(f"1 to {validation.MAX_CHOICES_PER_PROMPT}")
    assert f"up to {validation.MAX_STOP_STRINGS}, of 1 to {validation.MAX_STOP_CHARS}" in rows["stop"]
    assert f"up to {validation.MAX_LOGIT_BIASES}" in rows["logit_bias"]
    assert f"up to {validation.MAX_STOP_TOKENS}" in rows["stop_token_ids"]
    assert f"0 to {validation.MAX_LOGPROBS}" in rows["top_logprobs"]


# -- operations.md, tested-with.md


def test_the_restart_policy_is_the_default_one() -> None:
    policy = RestartPolicy()
    text = section(page("operations.md"), "Restarts")
    for said in (
        f"{policy.first_delay_s:g} s",
        f"{policy.factor:g} times as long, at most {policy.max_delay_s:g} s",
        f"after {policy.stable_s:g} s of being ready",
        f"with the {policy.max_failures}th failure",
    ):
        assert said in text
    options = LaunchOptions()
    assert f"for at most {options.drain_timeout_s:g} s" in section(page("operations.md"), "Stop")
    assert options.ready_timeout_s == 600, "operations.md says ten minutes"


def test_versions_are_those_of_the_constraints() -> None:
    pinned = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for package, version in table_rows(section(page("tested-with.md"), "Versions")):
        assert pinned[package.partition(" ")[0].replace("-", "_")] == version
