"""``dynamo-sdk check``: every built-in passes, a faulty plugin is told what and where, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_sdk.cli.main import main
from dynamo_sdk.plugins import Registry
from dynamo_sdk.runtime.model_path import resolve_model_path
from tests.docs.pages import page, section, table_rows
from tests.plugins.conftest import Install, install

__all__ = ["install"]

FAULTY = """\
from dynamo_sdk import hookimpl
from dynamo_sdk.interfaces import Router, RoutingDecision
from dynamo_sdk.plugins import RouterDescriptor

@hookimpl
def dynamo_sdk_routers():
    return [
        RouterDescriptor(name="numb", factory=f"{__name__}:Numb"),
        RouterDescriptor(name="stuck", factory=f"{__name__}:Stuck"),
    ]

class Numb(Router):
    def select(self, request, candidates, context):
        if request.session:
            raise KeyError(request.session)
        return RoutingDecision(worker_id="nobody")

class Stuck(Router):
    def select(self, request, candidates, context):
        while True:
            pass
"""


def check(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("name", Registry.of().routers)
def test_routers_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("router", name) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.endswith(f"router {name}: 14 passed, 0 failed, 0 skipped\n")


@pytest.mark.parametrize("name", Registry.of().kv_connectors)
def test_kv_connectors_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("kv-connector", name) == 0, capsys.readouterr().out


ENGINE_ARGS = {
    "echo": (),
    "mocker": ("--set", "speedup_ratio=1e6", "--set", "num_blocks=600", "--set", "block_size=4"),
    "torch": ("--set", "num_blocks=300", "--set", "num_threads=1", "--set", "device=cpu"),
}
"""``openai`` needs a server, and is tested against one elsewhere."""


def empty_adapter(folder: Path, number: int) -> str:
    (folder / f"{number}").mkdir()
    (folder / f"{number}" / "adapter_config.json").write_text("{}")
    return str(folder / f"{number}")


def demo_adapter(folder: Path, number: int) -> str:
    from tests.engines.torch.adapters import save_adapter
    from tests.engines.torch.models import load_reference

    model = load_reference(resolve_model_path("demo"))
    return save_adapter(model, folder / f"{number}", seed=number, rank=number + 2).path


LORA_ENGINES = {"echo": empty_adapter, "torch": demo_adapter}
"""Adapters for those that serve any."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINE_ARGS)
def test_engines_pass(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if name == "torch":
        pytest.importorskip("torch")
    args = list(ENGINE_ARGS[name])
    if name in LORA_ENGINES:
        args += [arg for number in range(2) for arg in ("--lora", LORA_ENGINES[name](tmp_path, number))]
    assert check("engine", name, *args, "--json") == 0, capsys.readouterr().out
    document = json.loads(capsys.readouterr().out)
    rows = table_rows(section(page("tested-with.md"), "Conformance of the engines"))
    (shown,) = [row[1:] for row in rows if row[0].startswith(f"`{name}`")]
    assert shown == [str(document[outcome]) for outcome in ("passed", "failed", "skipped", "unclaimed")]
    assert document["subject"] == Registry.of().engines[name].factory
    for result in document["results"]:
        assert result["outcome"] != "skipped" or result["detail"], result


def test_every_builtin_engine_is_checked() -> None:
    assert {*ENGINE_ARGS, "openai"} == set(Registry.of().engines)


STORE_COUNTS = {"ram": (11, 2), "disk": (13, 0)}
"""``s3`` needs a server, ``shared`` another worker; both are checked with one in ``tests/stores``."""


@pytest.mark.parametrize("name", STORE_COUNTS)
@pytest.mark.parametrize("args", [(), ("--set", "block_bytes=1000")], ids=["blocks of the kit", "others"])
def test_kv_stores_pass(name: str, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert check("kv-store", name, *args) == 0, capsys.readouterr().out
    num_passed, num_skipped = STORE_COUNTS[name]
    ended = f"kv-store {name}: {num_passed} passed, 0 failed, {num_skipped} skipped\n"
    assert capsys.readouterr().out.endswith(ended)


def test_every_builtin_store_is_checked() -> None:
    assert {*STORE_COUNTS, "s3", "shared"} == set(Registry.of().kv_stores)


def test_there_is_no_builtin_planner() -> None:
    """The first one is checked here as routers are."""
    assert not Registry.of().planners


def test_a_failure_names_rule_place_and_help(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    file = install("numb-sdk", "numb", FAULTY)
    assert check("router", "numb") == 1
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("failed    chooses_a_candidate")
    raised = FAULTY.splitlines().index("            raise KeyError(request.session)") + 1
    assert lines[start + 1].strip().startswith("KeyError: 'session-")
    assert lines[start + 2].strip() == f"at:   {file}:{raised}"
    assert lines[start + 3].strip().startswith("rule: The chosen worker")
    assert lines[start + 4].strip().startswith("help: ")
    assert lines[-1].startswith("router numb: ")
    assert ", 0 failed" not in lines[-1]


def test_a_plugin_that_blocks_everything_is_ended_with_its_place(install: Install) -> None:
    file = install("stuck-sdk", "stuck", FAULTY)
    code = "from dynamo_sdk.cli import main; main(['check', 'router', 'stuck', '--timeout', '1'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join([str(file.parent), *sys.path]), "PATH": ""},
    )
    assert done.returncode == 1
    line = FAULTY.splitlines().index("        while True:") + 1
    assert f"blocked for 3 s, at {file}:{line}" in done.stderr or f"at {file}:{line + 1}" in done.stderr
    assert "rule: " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("engin", "echo"), "no checks for 'engin'; KIND is one of engine, router"),
        (("launcher", "local"), "no checks for 'launcher'"),
        (("router", "kvv"), "did you mean 'kv'?"),
        (("router", "random", "--set", "x=1"), "router 'random' takes no arguments"),
        (("kv-store", "shared"), "kv-store 'shared' keeps nothing itself; check the stores that it reads"),
        (("engine", "echo", "--set", "delay=1"), "--set delay: unknown argument; did you mean 'delay_ms'?"),
        (("engine", "echo", "--set", "delay_ms"), "write ARG=VALUE"),
        (("engine", "echo", "--model", "./nowhere"), "no folder './nowhere'"),
    ],
)
def test_wrong_words(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(*words) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "200")
