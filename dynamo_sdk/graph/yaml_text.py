"""YAML text to JSON values, with the line of every key.

PyYAML's own constructors are bypassed: they turn ``no`` into False, ``1e-3`` into text and dates into
objects, and keep the last of two equal keys without a word. Here scalars follow the core schema of
YAML 1.2, the result is JSON and nothing else, and doubled keys, tags and cycles are errors with a line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import yaml

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.types.plan import Json

from .paths import Path, format_path

_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)
_WORDS: dict[str, Json] = {
    spelling: value
    for word, value in (("", None), ("~", None), ("null", None), ("true", True), ("false", False))
    for spelling in (word, word.title(), word.upper())
}
_PLAIN_TAGS = {"!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))}
_MAX_DEPTH = 32
_MAX_VALUES = 100_000
_MAX_INT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlText:
    """``lines``: path -> line of its key, counted from 1; only paths of mappings."""

    value: Json
    lines: dict[Path, int]


def read_yaml(text: str, *, name: str) -> YamlText:
    """Read one document; empty text is None. ``name`` stands in messages. Raises ``ConfigError``."""
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply; {_MAX_DEPTH} levels are allowed") from error
    except (ValueError, OverflowError) as error:  # PyYAML lets some through: escapes beyond Unicode
        raise ConfigError(f"{name}: not YAML: {error}") from error
    reader = _Reader(name)
    value = reader.read(root, ()) if root is not None else None
    return YamlText(value=value, lines=reader.lines)


class _Reader:
    """Walks the node tree once; ``lines`` fills on the way."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Path, int] = {}
        self._name = name
        self._num_values = 0

    def read(self, node: yaml.Node, path: tuple[str | int, ...]) -> Json:
        self._num_values += 1
        if len(path) > _MAX_DEPTH:  # also ends an alias that contains itself
            raise self._error(node, path[:3], f"nested too deeply; {_MAX_DEPTH} levels are allowed")
        if self._num_values > _MAX_VALUES:
            raise self._error(node, (), f"more than {_MAX_VALUES} values, counting repeated aliases")
        if node.tag not in _PLAIN_TAGS:
            raise self._error(node, path, f"the tag {node.tag!r} is not supported; write plain values")
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._read_scalar(node, path)

    def _read_mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> Json:
        merged: dict[str, Json] = {}
        own: dict[str, Json] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, path, "a key must be a plain name")
            key = self._text(key_node, path)
            here = (*path, key)
            if key in own:
                raise self._error(key_node, here, "given twice; keep one")
            if key == "<<" and key_node.style is None:
                merged |= self._read_merge(value_node, here)
                continue
            if all(isinstance(part, str) for part in here):
                self.lines[tuple(str(part) for part in here)] = key_node.start_mark.line + 1
            own[key] = self.read(value_node, here)
        return merged | own

    def _read_merge(self, node: yaml.Node, path: tuple[str | int, ...]) -> dict[str, Json]:
        value = self.read(node, path)
        merged: dict[str, Json] = {}
        for part in reversed(value) if isinstance(value, list) else [value]:  # the first one wins
            if not isinstance(part, dict):
                raise self._error(node, path, "merges mappings only")
            merged |= part
        return merged

    def _read_scalar(self, node: yaml.Node, path: tuple[str | int, ...]) -> Json:
        text = self._text(node, path)
        if getattr(node, "style", None) is not None:  # quoted or a block: text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text) or _OTHER_BASE.fullmatch(text):
            if len(text) > 64:
                raise self._error(node, path, "the number is too large")
            number = int(text, 10) if _INT.fullmatch(text) else int(text, 0)
            if abs(number) > _MAX_INT:
                raise self._error(node, path, f"the number {text} is too large; 64 bits are allowed")
            return number
        if _NOT_FINITE.fullmatch(text):
            raise self._error(node, path, f"numbers are finite, {text} is not")
        if _FLOAT.fullmatch(text):
            real = float(text)
            if not math.isfinite(real):
                raise self._error(node, path, f"the number {text} is too large")
            return real
        return text

    def _text(self, node: yaml.Node, path: tuple[str | int, ...]) -> str:
        text: str = node.value
        try:  # PyYAML leaves a pair of JSON's \\u escapes apart, and lets one alone pass
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._error(node, path, f"{text!r} is not Unicode text") from None

    def _error(self, node: yaml.Node, path: tuple[str | int, ...], message: str) -> ConfigError:
        where = f"{format_path(path)}: " if path else ""
        return ConfigError(f"{self._name}, line {node.start_mark.line + 1}: {where}{message}")
