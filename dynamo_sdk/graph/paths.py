"""Paths into a deploy file: ``services.Decode.replicas``, with quotes around keys that contain a dot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.types.plan import Json

Path = tuple[str, ...]

_KEY = re.compile(r'"([^"]+)"|([^."]+)')


def parse_path(text: str) -> Path:
    """Split a path. Raises ``ConfigError`` when it is not one."""
    keys: list[str] = []
    position = 0
    while match := _KEY.match(text, position):
        keys.append(match[1] or match[2])
        position = match.end()
        if position == len(text):
            return tuple(keys)
        if text[position] != ".":
            break
        position += 1
    raise ConfigError(
        f"{text!r} is not a path; write keys with dots between them, e.g. services.Decode.replicas, "
        'and quote a key that contains a dot: models."llama-3.1".path'
    )


def format_path(path: Sequence[str | int]) -> str:
    """The inverse of ``parse_path``; positions in lists come out as ``tiers[0]``."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            shown = f'"{key}"' if "." in key or not key else key
            text += f".{shown}" if text else shown
    return text


def leaves(value: Json, path: Path) -> Iterator[tuple[Path, Json]]:
    """Every value below ``path`` that is not a mapping; lists and empty mappings count as one value."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    else:
        yield path, value
