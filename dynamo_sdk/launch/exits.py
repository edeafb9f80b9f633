"""What a process of ours says when it fails: an exit code and one readable block."""

from __future__ import annotations

import os
import traceback

from dynamo_sdk.errors import DynamoError, PluginError, UserError

EXIT_CLEAN = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
DEBUG_VARIABLE = "DYNAMO_SDK_DEBUG"
"""Set to ``1`` by ``--debug``: full tracebacks, also in every replica."""


def turn_debug_on() -> None:
    """Tracebacks from now on, here and in every process that we start."""
    os.environ[DEBUG_VARIABLE] = "1"


def is_debug() -> bool:
    return os.environ.get(DEBUG_VARIABLE) == "1"


def exit_code(error: BaseException) -> int:
    """2 when what the user wrote or installed is at fault, else 1."""
    return EXIT_USER_ERROR if isinstance(error, UserError | PluginError) else EXIT_FAILED


def readable(error: BaseException) -> str:
    """The error as one block: our own in their own words, a stranger with its place."""
    if is_debug():
        return "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, DynamoError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name} ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"unexpected {type(error).__name__}{place}: {error}\n--debug shows the whole traceback"


def innermost(error: BaseException) -> BaseException:
    """The first thing that went wrong: task groups wrap it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
