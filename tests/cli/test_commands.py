"""Subcommands that plugins bring along."""

from __future__ import annotations

import importlib.metadata

import pytest

from dynamo_sdk.cli import main
from dynamo_sdk.plugins import Registry, hookimpl
from dynamo_sdk.plugins.descriptors import CommandDescriptor


def greet(name: str) -> None:
    """Say hello."""
    print(f"hello {name}")  # noqa: T201


class Plugin:
    @hookimpl
    def dynamo_sdk_commands(self) -> list[CommandDescriptor]:
        return [
            CommandDescriptor(name="greet", factory=f"{__name__}:greet"),
            CommandDescriptor(name="broken", factory="no_such_module:command"),
        ]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **query: ["one"] if query == {"group": "dynamo_sdk"} else real(**query),
    )
    monkeypatch.setattr(Registry, "discover", lambda: Registry.of(Plugin()))


def run(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


def test_a_plugins_command_runs_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("greet", "world") == 0
    assert capsys.readouterr().out == "hello world\n"
    assert run("--help") == 0
    listed = capsys.readouterr().out
    assert "greet" in listed
    assert "broken" not in listed


def test_a_command_that_cannot_be_loaded_is_an_error_for_who_wants_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("broken") == 2
    assert "command 'broken'" in capsys.readouterr().err
