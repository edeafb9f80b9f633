"""Code, commands and output on the pages are real."""

from __future__ import annotations

import ast
import contextlib
import io
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from typer.main import get_command

from dynamo_sdk.cli.main import build_app, main
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.deploy import parse_deploy
from dynamo_sdk.runtime.target import load_graph

from .pages import DEMO_URL, ROOT, Block, Command, blocks, commands, is_shown

PROGRAM = "dynamo-sdk"
PRINTING = ("plan", "plugins", "check")
TUTORIAL = ROOT / "docs" / "write-a-plugin.md"
"""Its commands run in order in a folder of their own: tests/examples/test_plugin_package.py."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands of a page run: the examples are there, and the page's own files."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def write_files(block: Block, folder: Path) -> None:
    for other in blocks():
        if other.verb == "file" and other.page == block.page:
            (folder / other.argument).write_text(other.text)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in blocks() if b.verb == "same as"], ids=str)
def test_shown_files_are_as_they_are(block: Block) -> None:
    source = (ROOT / block.argument).read_text()
    docstring = ast.parse(source).body[0]
    assert isinstance(docstring, ast.Expr)
    assert block.text.strip() == "\n".join(source.splitlines()[docstring.end_lineno :]).strip()


@pytest.mark.parametrize("block", [b for b in blocks() if b.verb == "run"], ids=str)
def test_programs_print_what_is_shown(block: Block, folder: Path) -> None:
    (folder / "program.py").write_text(block.text)
    command = [sys.executable, "program.py"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert block.output, f"{block} shows no output"
    assert is_shown(block.output, ended.stdout), ended.stdout


@pytest.fixture(scope="module")
def demo_url() -> Iterator[str]:
    """The quickstart, in this process."""
    pytest.importorskip("torch")
    graph = load_graph(str(ROOT / "examples/quickstart.py"))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(graph.local()) as app:
        assert app.url is not None
        yield app.url


@pytest.mark.parametrize("block", [b for b in blocks() if b.verb == "client"], ids=str)
def test_clients_get_what_is_shown(block: Block, demo_url: str) -> None:
    printed = io.StringIO()
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text.replace(DEMO_URL, demo_url), str(block), "exec"), names)
    names["client"].close()  # type: ignore[attr-defined]
    assert block.output, f"{block} shows no output"
    assert is_shown(block.output, printed.getvalue()), printed.getvalue()


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_deploy_files_are_valid(block: Block) -> None:
    if block.text.startswith("# refused"):
        with pytest.raises(ConfigError):
            parse_deploy(block.text)
    else:
        assert parse_deploy(block.text).origins


OURS = [command for command in commands() if command.line.startswith(PROGRAM)]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_options_exist(command: Command) -> None:
    _, name, *arguments = shlex.split(command.line)
    group = get_command(build_app([name]))
    chosen = group.commands[name]  # type: ignore[attr-defined]
    chosen.make_context(name, arguments)  # raises for an option that is none


@pytest.mark.parametrize("command", [c for c in commands() if c not in OURS], ids=str)
def test_other_commands_are_known(command: Command) -> None:
    program, *arguments = shlex.split(command.line)
    if program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    else:
        assert program in ("python3.11", ".venv/bin/pip") or command.block.page == TUTORIAL


@pytest.mark.parametrize(
    "command",
    [c for c in OURS if c.output and shlex.split(c.line)[1] in PRINTING and c.block.page != TUTORIAL],
    ids=str,
)
def test_commands_print_what_is_shown(
    command: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(command.block, folder)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command.line)[1:])
    printed = capsys.readouterr()
    assert is_shown(command.output, printed.out + printed.err), printed.out + printed.err
    assert ended.value.code == (2 if command.output.startswith("error:") else 0)


def test_planted_lies_are_found() -> None:
    """The comparison is lenient about white space and ``...`` only."""
    assert is_shown("a  b\n...\nd\n", "a b\nc\nd\n")
    assert not is_shown("a b\n...\ne\n", "a b\nc\nd\n")
    assert not is_shown("a\n", "a b\n")
