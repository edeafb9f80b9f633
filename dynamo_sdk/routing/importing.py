"""Stages and routers by import string."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from dynamo_sdk.errors import ConfigError


def imported(path: str) -> Any:
    """What ``module:name`` names. Raises ``ConfigError`` saying what is wrong with it."""
    if ":" not in path:
        raise ConfigError(f"{path!r} is no import string; write module:name")
    try:
        return resolve_name(path)
    except ModuleNotFoundError as error:
        module = path.partition(":")[0]
        fix = "; put it beside the graph file, or install it" if (error.name or "") in module else ""
        raise ConfigError(f"cannot import {path!r}: there is no module {error.name!r}{fix}") from error
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(f"cannot import {path!r}: {type(error).__name__}: {error}") from error
