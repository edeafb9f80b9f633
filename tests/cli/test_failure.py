from __future__ import annotations

import io
import sys

import pytest

from dynamo_sdk.cli.failure import report
from dynamo_sdk.errors import ConfigError, DynamoError, LaunchError, PluginError
from dynamo_sdk.launch.exits import DEBUG_VARIABLE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("port: 99999 is no port"), 2),
        (PluginError("engine 'x' is offered twice"), 2),
        (LaunchError("Decode.0 ended with code 1"), 1),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [ConfigError("wrapped")])]), 2),
    ],
)
def test_our_errors_speak_for_themselves(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DynamoError)
    assert capsys.readouterr().err == f"error: {error.message}\n"


def broken() -> None:
    raise ZeroDivisionError("oh")


def test_a_stranger_is_shown_with_its_place_and_the_way_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        broken()
    assert report(caught.value) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected ZeroDivisionError in broken (")
    assert "--debug" in said
    assert "Traceback" not in said
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    report(caught.value)
    assert "Traceback" in capsys.readouterr().err


def test_a_terminal_gets_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    report(ConfigError("no such [thing]"))
    assert "check your input" in terminal.getvalue()
    assert "no such [thing]" in terminal.getvalue()
