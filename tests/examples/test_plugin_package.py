"""The tutorial, followed to the letter: from an empty folder, in an environment of its own.

No index is asked: the environment sees the packages of this one, and the tutorial's ``pip install
dynamo-sdk`` is taken as done. All else runs as it stands on the page.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import pytest

from tests.docs.pages import ROOT, Command, blocks, commands, is_shown

PACKAGE = ROOT / "examples" / "plugin_package"
PAGE = ROOT / "docs" / "write-a-plugin.md"
FILES = {block.argument: block.text for block in blocks() if block.page == PAGE and block.verb == "file"}
COMMANDS = [command for command in commands() if command.block.page == PAGE]
PROGRAMS = {
    "pip": ("-m", "pip"),
    "pytest": ("-m", "pytest"),
    "dynamo-sdk": ("-c", "from dynamo_sdk.cli import main; main()"),
}


def test_the_page_shows_the_whole_package() -> None:
    real = {
        str(file.relative_to(PACKAGE)): file.read_text()
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix in (".py", ".toml", ".yaml")
    }
    assert real == FILES


@pytest.mark.parametrize(("name", "most"), [("engine", 45), ("router", 10), ("planner", 25), ("store", 55)])
def test_the_parts_are_short(name: str, most: int) -> None:
    """Lines of code, without imports, docstring and blank lines."""
    lines = FILES[f"acme/{name}.py"].splitlines()[1:]
    code = [line for line in lines if line.strip() and not line.startswith(("import ", "from "))]
    assert len(code) <= most


class Reader:
    """Who follows the page: a folder, and the environment that it has made there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def python(self) -> Path:
        return self.folder / ".venv" / "bin" / "python"

    def follow(self, command: Command) -> None:
        program, *arguments = shlex.split(command.line)
        if program == "mkdir":
            (self.folder / arguments[0]).mkdir()
        elif program == "cd":
            self.folder /= arguments[0]
        elif program == "python3.11":
            subprocess.run([sys.executable, *arguments, "--without-pip"], cwd=self.folder, check=True)
        elif program == ".":
            assert (self.folder / arguments[0]).is_file()
        elif arguments == ["install", "dynamo-sdk", "pytest"]:
            self.see_our_packages()
            for name, text in FILES.items():
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.folder / name).write_text(text)
        elif arguments and arguments[0] == "run":
            self.serve(arguments)
        else:
            done = self.start(program, arguments)
            printed, _ = done.communicate(timeout=100)
            assert done.returncode == 0, printed
            assert not command.output or is_shown(command.output, printed), printed

    def see_our_packages(self) -> None:
        (site,) = self.folder.glob(".venv/lib/python*/site-packages")
        (site / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_paths()['purelib']}\n")

    def start(self, program: str, arguments: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, *PROGRAMS[program], *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        return kept | {
            "COLUMNS": "200",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "false",  # pip reads it as "no isolation"
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def serve(self, arguments: list[str]) -> None:
        """As on the page, but on a free port; one question, and Ctrl-C."""
        served = self.start("dynamo-sdk", [*arguments, "--port", "0"])
        try:
            assert served.stdout is not None
            line = next((line for line in served.stdout if line.startswith("ready ")), "")
            body = {"model": "demo", "prompt": "KV block", "max_tokens": 8, "temperature": 0}
            answer = httpx.post(f"{line.split()[1]}/v1/completions", json=body, timeout=30)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] > 0
            served.send_signal(signal.SIGINT)
            served.communicate(timeout=30)
            assert served.returncode in (0, 130)
        finally:
            served.kill()
            served.communicate()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("tutorial"))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.line)
def test_the_tutorial(reader: Reader, command: Command) -> None:
    """In order; what comes later needs what came before."""
    reader.follow(command)


def test_the_mistake_of_the_page_is_shown_as_on_the_page(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "acme" / "engine.py"
    right = "if not 0 < len(prompt) + position <"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, "if not len(prompt) + position <"))
    (tmp_path / "dynamo_sdk_acme-0.1.0.dist-info").mkdir()
    for name, text in {
        "METADATA": "Metadata-Version: 2.1\nName: dynamo-sdk-acme\nVersion: 0.1.0\n",
        "entry_points.txt": "[dynamo_sdk]\nacme = acme.plugin\n",
    }.items():
        (tmp_path / "dynamo_sdk_acme-0.1.0.dist-info" / name).write_text(text)
    done = subprocess.run(
        [sys.executable, *PROGRAMS["dynamo-sdk"], "check", "engine", "mirror"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    (shown,) = [block.text for block in blocks("text") if block.page == PAGE]
    start = done.stdout.index("failed    empty_prompt_is_refused")
    length = shown.count("\n")
    assert is_shown(shown, "".join(done.stdout[start:].splitlines(keepends=True)[:length]))
