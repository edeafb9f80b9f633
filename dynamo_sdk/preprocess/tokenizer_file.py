"""How a ``tokenizer.json`` says that text becomes ids, as far as a shorter way to the same ids depends on it.

The stages are those of the ``tokenizers`` library: cut the text at added tokens, normalize and pre-tokenize
each piece, tokenize each word by the model, post-process the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is looked for in the text before the model sees it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @property
    def is_verbatim(self) -> bool:
        """Found exactly where it is written, whatever stands around it."""
        return not (self.single_word or self.lstrip or self.rstrip or self.normalized)


Stage = Mapping[str, Any]
"""One stage as the file spells it; ``type`` says which."""


class TokenizerFile(msgspec.Struct, frozen=True):
    """Raises ``msgspec.ValidationError`` when decoded from a file of another shape."""

    model: dict[str, Any]
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def steps(stage: Stage | None) -> list[Stage]:
    """The steps of a stage in order, with sequences in sequences made flat."""
    if stage is None:
        return []
    if stage.get("type") != "Sequence":
        return [stage]
    inner = stage.get("normalizers") or stage.get("pretokenizers") or stage.get("processors") or []
    return [step for part in inner for step in steps(part)]
