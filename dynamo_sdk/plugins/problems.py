"""What is wrong with an installed plugin, and where to look.

A broken plugin must not take the others down, so problems are collected, shown by ``dynamo-sdk plugins``,
and raised only when somebody needs what the broken plugin would have offered.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Rule(StrEnum):
    """What a plugin must do; a problem names the rule that it breaks."""

    IMPORTABLE = "its entry point can be imported"
    ENTRY_POINT_UNIQUE = "entry points of different distributions have different names"
    NAME_UNIQUE = "two plugins do not offer the same name"
    HOOK_KNOWN = "every marked function bears the name of a hook"
    HOOK_MARKED = "every dynamo_sdk_* function is marked with @dynamo_sdk.hookimpl"
    HOOK_SIGNATURE = "a hook takes the arguments of its specification, or fewer"
    HOOK_RETURNS = "a hook does not raise"
    HOOK_RESULT = "a hook returns a list of its descriptors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who offers something: a plugin (its entry point's name), and the distribution that installed it."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One broken rule. ``file`` and ``line`` point at the cause where it can be found.

    ``is_fatal``: nothing, or not all, that the plugin offers could be read; a name that is missing may
    be missing because of this.
    """

    source: Source
    rule: Rule
    message: str
    file: str | None = None
    line: int | None = None
    is_fatal: bool = False

    def __str__(self) -> str:
        place = f" ({self.file}:{self.line})" if self.file else ""
        return f"{self.source}: {self.message}{place}"


def place_of_function(function: Callable[..., object]) -> tuple[str | None, int | None]:
    """File and first line of a function; ``(None, None)`` for what has no Python code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else (None, None)


def where_defined(thing: object) -> str:
    """`` (file:line)`` of a class or function, for the end of a message; empty where there is no source."""
    try:
        return f" ({inspect.getsourcefile(thing)}:{inspect.getsourcelines(thing)[1]})"  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def place_of_error(error: BaseException) -> tuple[str | None, int | None]:
    """File and line where the plugin raised ``error``, or called into what raised it."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_machinery(Path(frame.filename)):
            return frame.filename, frame.lineno
    return None, None


def _is_machinery(file: Path) -> bool:
    """Generated code, the import system and this package: never where the mistake is."""
    return str(file).startswith("<") or "importlib" in file.parts or file.parent == _OUR_FOLDER


_OUR_FOLDER = Path(__file__).parent
