r"""The optional package `fastokens` as encoder, for the tokenizers for which it gives exactly the same ids.

It is used when three things hold: the installed version is the one whose ids were compared at length, the
tokenizer is of a shape for which they were compared (the tests do it for every code point and at random),
and for this very tokenizer all probes below give the same ids. Otherwise ``tokenizers`` keeps the work.
What is known to differ is left out by the shape: with split patterns of other families, for one, the
Mongolian vowel separator U+180E counts as a space here and not there; with that of o200k, ``S'\u017f'to`` (a
long s in a contraction) is cut in another place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from typing import Any

import msgspec

from .encode import Encode
from .probe_texts import PROBE_TEXTS
from .tokenizer_file import AddedToken, Stage, TokenizerFile, steps

logger = logging.getLogger(__name__)

TESTED_VERSION = "0.3.5"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
)
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT_PATTERNS = {
    "llama 3": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
    "qwen 2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
    "tekken": _CASED_WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,
    "qwen 3.5": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + _SPACES,
}
"""By the family of models that made the pattern known."""


def load_fast_encoder(tokenizer_json: bytes, reference: Encode) -> Encode | None:
    """An encoder with the ids of ``reference``, or None: not installed, or not known to be equal.

    A package that is installed and not used is worth a line in the log.
    """
    try:
        version = metadata.version("fastokens")
    except metadata.PackageNotFoundError:
        return None
    obstacle = _version_obstacle(version) or shape_obstacle(tokenizer_json)
    if obstacle is None:
        try:
            encode = _open(tokenizer_json)
            obstacle = probe_obstacle(tokenizer_json, encode, reference)
        except Exception as error:  # of another library, and never a reason not to serve
            obstacle = f"it fails: {error}"
        if obstacle is None:
            return encode
    logger.warning("fastokens is installed but not used for this tokenizer: %s", obstacle)
    return None


def _version_obstacle(version: str) -> str | None:
    return None if version == TESTED_VERSION else f"its version is {version}, compared was {TESTED_VERSION}"


def shape_obstacle(tokenizer_json: bytes) -> str | None:
    """What keeps this tokenizer from the shapes that were compared; None = nothing."""
    try:
        file = msgspec.json.decode(tokenizer_json, type=TokenizerFile)
    except msgspec.DecodeError as error:
        return f"its file is of another shape: {error}"
    if not _is_plain_bpe(file.model):
        return "its model is no plain byte-level BPE"
    if [step.get("type") for step in steps(file.normalizer)] not in ([], ["NFC"]):
        return "its normalizer is not NFC"
    if not _splits_as_compared(steps(file.pre_tokenizer)):
        return "it splits words in a way that was not compared"
    return None


def _is_plain_bpe(model: Stage) -> bool:
    unusual = (
        "dropout", "unk_token", "fuse_unk", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"
    )  # fmt: skip
    return model.get("type") == "BPE" and not any(model.get(option) for option in unusual)


def _splits_as_compared(pre_tokenizer: Sequence[Stage]) -> bool:
    if not pre_tokenizer:
        return False
    *splits, bytes_ = pre_tokenizer
    if bytes_.get("type") != "ByteLevel" or bytes_.get("add_prefix_space"):
        return False
    if not splits:
        return bytes_.get("use_regex", True) is True
    split = splits[0]
    return (
        len(splits) == 1
        and bytes_.get("use_regex") is False
        and split.get("type") == "Split"
        and split.get("pattern", {}).get("Regex") in SPLIT_PATTERNS.values()
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
    )


def _open(tokenizer_json: bytes) -> Encode:
    tokenizer: Any = import_module("fastokens").Tokenizer.from_json_str(tokenizer_json.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    return encode


def probe_obstacle(tokenizer_json: bytes, encode: Encode, reference: Encode) -> str | None:
    """The first probe whose ids differ; None = all are equal."""
    added = msgspec.json.decode(tokenizer_json, type=TokenizerFile).added_tokens
    for text in _probes(added):
        for add_special_tokens in (False, True):
            expected = reference(text, add_special_tokens=add_special_tokens)
            if encode(text, add_special_tokens=add_special_tokens) != expected:
                return f"it reads {text[:80]!a} differently"
    return None


def _probes(added: Sequence[AddedToken]) -> Iterator[str]:
    yield ""
    yield from PROBE_TEXTS
    yield "".join(PROBE_TEXTS)
    for token in added:
        whole, part = token.content, token.content[:-1]
        yield f"{whole}a {whole} {whole}{whole}\n\n{whole}\n{part}{whole}{part} 's{whole}t"
