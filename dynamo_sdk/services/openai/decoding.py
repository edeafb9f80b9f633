"""Bytes to a request struct; what is wrong is said with the field's path, its value and what is allowed."""

from __future__ import annotations

import re
from functools import cache
from typing import TypeVar

import msgspec

from dynamo_sdk.errors import InvalidRequest

_T = TypeVar("_T", bound=msgspec.Struct)

_LOCATION = re.compile(r"^(?P<problem>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_MAX_SHOWN_CHARS = 60
_MAX_SEARCHED_BYTES = 1 << 20
"""Larger bodies are not decoded a second time for the sake of a message."""


def decode_body(body: bytes, type_: type[_T]) -> _T:
    """Raises ``InvalidRequest`` for anything that is not a ``type_``."""
    try:
        request = _decoder(type_).decode(body)
    except msgspec.ValidationError as error:
        raise _explain(body, str(error)) from None
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    assert isinstance(request, type_)
    return request


@cache
def _decoder(type_: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(type_)


def _explain(body: bytes, complaint: str) -> InvalidRequest:
    match = _LOCATION.match(complaint)
    assert match is not None  # the pattern matches any text
    problem, path = match["problem"], (match["path"] or "").lstrip(".")
    missing = _MISSING.match(problem)
    if missing:
        param = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"{param} is missing; it is required", param=param)
    if not path:
        return InvalidRequest(f"the request body is wrong: {problem.replace('`', '')}")
    shown = _value_at(body, path)
    is_shown = f" is {shown}" if shown is not None else ""
    return InvalidRequest(f"{path}{is_shown}: {problem.replace('`', '').lower()}", param=path)


def _value_at(body: bytes, path: str) -> str | None:
    """The value at fault as JSON, shortened; None where the path does not lead to one."""
    if len(body) > _MAX_SEARCHED_BYTES:
        return None
    try:
        value = msgspec.json.decode(body)
        for key, index in _STEP.findall("." + path):
            value = value[key] if key else value[int(index)]
        text = msgspec.json.encode(value).decode()
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"
