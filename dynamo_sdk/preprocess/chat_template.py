"""Render chat messages with a model's Jinja template, in the environment such templates are written for.

The names templates may use are those of ``transformers``: ``messages``, ``tools``, ``documents``,
``add_generation_prompt``, the special tokens, ``raise_exception``, ``strftime_now``, the filter ``tojson``,
``break`` and ``continue``, and the ``generation`` block. The sandbox keeps a template from changing
anything; the bounds here keep it from running or growing without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dynamo_sdk.errors import ConfigError, InvalidRequest
from dynamo_sdk.types.plan import Json

from .model_files import SpecialToken

Message = Mapping[str, Json]

MAX_MESSAGES = 16_384
"""More than anybody says; callers refuse longer conversations before they build them."""
MAX_LOOP_STEPS = 1_000_000
"""Steps of ``range`` loops per rendering; loops over messages are bounded by their number."""
MAX_GROWTH_CHARS = 1_000_000
"""How much longer than twice its messages a rendered prompt may be."""

_PROBE = "probe\u2063text"


class _TemplateRefusal(Exception):
    """The template itself called ``raise_exception``."""


class _TooMuchWork(Exception):
    """A rendering went over one of the bounds."""


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it only renders them."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """One compiled template. Raises ``ConfigError`` when it is no valid Jinja."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, SpecialToken],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template is not valid: {error}") from error
        # Jinja copies these for every rendering; from its chain of dictionaries that takes half the time.
        self._template.globals = dict(self._template.globals)
        self._special_tokens = dict(special_tokens)
        self._takes_parts = self._shows_probe([{"type": "text", "text": _PROBE}])
        self._takes_strings = not self._takes_parts or self._shows_probe(_PROBE)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Json] | None = None,
    ) -> str:
        """The prompt's text. Raises ``InvalidRequest`` when the template refuses the messages."""
        given = [self._fit_content(message) for message in messages]
        max_chars = MAX_GROWTH_CHARS + 2 * sum(map(num_content_chars, messages))
        try:
            return self._render(given, add_generation_prompt, variables or {}, max_chars)
        except _TemplateRefusal as refusal:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {refusal}", param="messages"
            ) from refusal
        except Exception as error:  # templates are programs; whatever they raise, the messages led there
            raise InvalidRequest(
                f"the model's chat template cannot render these messages: {type(error).__name__}: {error}",
                param="messages",
            ) from error

    def _render(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Json],
        max_chars: int,
    ) -> str:
        context: dict[str, Any] = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "range": _BoundedRange(),
        }
        pieces: list[str] = []
        for piece in self._template.generate(context):
            max_chars -= len(piece)
            if max_chars < 0:
                raise _TooMuchWork("the prompt grows without bound")
            pieces.append(piece)
        return "".join(pieces)

    def _fit_content(self, message: Message) -> Message:
        """Give the template the form of content it was written for: a string, or a list of text parts."""
        content = message.get("content")
        if isinstance(content, str) and not self._takes_strings:
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list) and not self._takes_parts:
            texts = [part["text"] for part in content if isinstance(part, dict)]
            return {**message, "content": "\n".join(str(text) for text in texts)}
        return message

    def _shows_probe(self, content: Json) -> bool:
        """Whether the template prints this content's text, and not its Python form."""
        try:
            text = self._render([{"role": "user", "content": content}], True, {}, MAX_GROWTH_CHARS)
        except Exception:  # it may want other roles or more messages; then it cannot be told this way
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text


class _BoundedRange:
    """``range`` for one rendering: all its loops together take at most ``MAX_LOOP_STEPS`` steps."""

    def __init__(self) -> None:
        self._num_left = MAX_LOOP_STEPS

    def __call__(self, *args: int) -> range:
        steps = range(*args)
        self._num_left -= 1 + len(steps)
        if self._num_left < 0:
            raise _TooMuchWork(f"its loops take more than {MAX_LOOP_STEPS} steps")
        return steps


def num_content_chars(message: Message) -> int:
    """Characters of a message's content, in whichever form it came."""
    return _num_chars(message.get("content"))


def _num_chars(content: Json) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        return sum(_num_chars(part) for part in content)
    return sum(_num_chars(value) for value in content.values()) if isinstance(content, dict) else 0


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusal(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, it escapes nothing for HTML and keeps characters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
