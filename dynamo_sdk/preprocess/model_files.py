"""The small JSON files of a Hugging Face style folder, as far as the frontend needs them.

``tokenizer_config.json`` names special tokens and may hold the chat template; ``chat_template.jinja`` and
``chat_template.json`` hold it in newer folders; ``config.json`` and ``generation_config.json`` know the
vocabulary size and which tokens end a text. Each may be missing; one that is there must be readable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from dynamo_sdk.errors import ConfigError

SpecialToken = str | list[str]

_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_DEFAULT_TEMPLATE = "default"


class _AddedToken(msgspec.Struct):
    content: str


_Named = str | _AddedToken | None


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    bos_token: _Named = None
    eos_token: _Named = None
    unk_token: _Named = None
    sep_token: _Named = None
    pad_token: _Named = None
    cls_token: _Named = None
    mask_token: _Named = None
    additional_special_tokens: list[str | _AddedToken] | None = None
    chat_template: str | list[_NamedTemplate] | None = None


class _TextConfig(msgspec.Struct):
    vocab_size: int | None = None
    eos_token_id: int | list[int] | None = None


class _Config(_TextConfig):
    text_config: _TextConfig | None = None


class _TemplateFile(msgspec.Struct):
    chat_template: str | None = None


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """``special_tokens``: by the names that templates use. ``vocab_size``: rows of the model's
    embedding, None where ``config.json`` does not say."""

    special_tokens: dict[str, SpecialToken]
    chat_template: str | None
    eos_ids: tuple[int, ...]
    vocab_size: int | None


def read_model_files(folder: Path) -> ModelFiles:
    """Raises ``ConfigError`` for a file that is there and cannot be understood."""
    tokenizer_config = _read(folder / "tokenizer_config.json", _TokenizerConfig)
    config = _read(folder / "config.json", _Config)
    generation = _read(folder / "generation_config.json", _TextConfig)
    special: dict[str, SpecialToken] = {}
    for name in _SPECIAL_TOKENS:
        token: _Named = getattr(tokenizer_config, name)
        if token is not None:
            special[name] = _content(token)
    if tokenizer_config.additional_special_tokens:
        special["additional_special_tokens"] = [
            _content(token) for token in tokenizer_config.additional_special_tokens
        ]
    text_config = config.text_config or _TextConfig()
    return ModelFiles(
        special_tokens=special,
        chat_template=_chat_template(folder, tokenizer_config),
        eos_ids=_ids(config.eos_token_id) + _ids(text_config.eos_token_id) + _ids(generation.eos_token_id),
        vocab_size=config.vocab_size or text_config.vocab_size,
    )


def _chat_template(folder: Path, tokenizer_config: _TokenizerConfig) -> str | None:
    """A file of its own wins over the tokenizer's configuration, as in ``transformers``."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    from_json = _read(folder / "chat_template.json", _TemplateFile).chat_template
    if from_json is not None:
        return from_json
    declared = tokenizer_config.chat_template
    if not isinstance(declared, list):
        return declared
    by_name = {entry.name: entry.template for entry in declared}
    return by_name.get(_DEFAULT_TEMPLATE)


_T = TypeVar("_T", bound=msgspec.Struct)


def _read(path: Path, type_: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except FileNotFoundError:
        return type_()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _content(token: str | _AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _ids(declared: int | list[int] | None) -> tuple[int, ...]:
    if declared is None:
        return ()
    return (declared,) if isinstance(declared, int) else tuple(declared)
