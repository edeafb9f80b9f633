"""Arguments of plugins: their base model, and errors that a user of a deploy file can act on."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dynamo_sdk.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


class PluginConfig(BaseModel):
    """A good base for the ``config`` model of a plugin: frozen, and unknown arguments are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validated(model: type[M], args: Mapping[str, object], *, where: str) -> M:
    """``args`` as a ``model``; ``where`` is their path, or the option that gave them. Raises ``ConfigError``,
    one line per wrong value."""
    try:
        return model.model_validate(dict(args))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        lines: list[str] = []
        for problem in problems:
            below = ".".join(str(part) for part in problem["loc"])
            path = f"{where} {below}" if where.startswith("--") else f"{where}.{below}"
            if problem["type"] == "extra_forbidden":
                lines.append(f"{path}: unknown argument{_nearest(str(problem['loc'][-1]), model)}")
            elif problem["type"] == "missing":
                lines.append(f"{path}: {problem['msg'].lower()}")
            else:
                lines.append(f"{path}: {problem['msg']}, got {problem['input']!r}")
        raise ConfigError("\n".join(lines), param=where) from error


def _nearest(name: str, model: type[BaseModel]) -> str:
    fields = list(model.model_fields)
    close = get_close_matches(name, fields, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (known: {', '.join(fields)})" if fields else " (there are none)"
