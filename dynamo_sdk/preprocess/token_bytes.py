"""What each token id adds to the text, as bytes, read from the decoder of a ``tokenizer.json``.

Two families cover nearly every model. Byte-level BPE (GPT-2, Llama 3, Qwen) writes each byte as one
printable character. SentencePiece style (Llama 2, Mistral, Gemma) writes a space as ``▁`` and rare bytes
as ``<0xE2>``. For both, text is the concatenation of the tokens' bytes, which makes incremental
detokenizing a table look-up; any other decoder has no table and is asked to decode windows instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

import msgspec
from tokenizers import Tokenizer as HfTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class LeadingSpace(Enum):
    """What a decoder does to the space at the very start of a text."""

    KEEP = "keep"
    DROP_ONE = "drop one"
    DROP_IN_FIRST_TOKEN = "drop in first token"


class TokenBytes(msgspec.Struct, frozen=True):
    """``table[id]`` = the bytes of token ``id``; special tokens are spelt out."""

    table: list[bytes]
    leading_space: LeadingSpace


class _Decoder(msgspec.Struct):
    """The decoder section of a ``tokenizer.json``, as far as it is understood here."""

    type: str = ""
    decoders: list[_Decoder] = []
    pattern: dict[str, str] = {}
    content: str = ""
    start: int = 0
    stop: int = 0
    replacement: str = ""
    prepend_scheme: str = "always"


class _TokenizerFile(msgspec.Struct):
    decoder: _Decoder | None = None


def read_token_bytes(tokenizer_json: bytes, tokenizer: HfTokenizer) -> TokenBytes | None:
    """The table, or None when the decoder is of no family that concatenates bytes."""
    try:
        decoder = msgspec.json.decode(tokenizer_json, type=_TokenizerFile).decoder
    except msgspec.DecodeError:
        return None
    if decoder is None:
        return None
    steps = decoder.decoders if decoder.type == "Sequence" else [decoder]
    kinds = [step.type for step in steps]
    if kinds == ["ByteLevel"]:
        return TokenBytes(_table(tokenizer, _byte_level), LeadingSpace.KEEP)
    if kinds == ["Metaspace"]:
        mark, scheme = steps[0].replacement, steps[0].prepend_scheme
        leading = LeadingSpace.KEEP if scheme == "never" else LeadingSpace.DROP_IN_FIRST_TOKEN
        return TokenBytes(_table(tokenizer, lambda token: token.replace(mark, " ").encode()), leading)
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        mark = steps[0].pattern.get("String", "")
        if not mark or steps[0].content != " ":
            return None
        leading = LeadingSpace.KEEP
        if kinds[-1] == "Strip":
            if (steps[-1].content, steps[-1].start, steps[-1].stop) != (" ", 1, 0):
                return None
            leading = LeadingSpace.DROP_ONE
        return TokenBytes(_table(tokenizer, lambda token: _byte_fallback(token, mark)), leading)
    return None


def _table(tokenizer: HfTokenizer, to_bytes: Callable[[str], bytes]) -> list[bytes]:
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        table[token_id] = to_bytes(token)
    return table


def _byte_fallback(token: str, mark: str) -> bytes:
    match = _BYTE_TOKEN.match(token)
    return bytes([int(match[1], 16)]) if match else token.replace(mark, " ").encode()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:  # an added token in plain text
        return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_level_alphabet()
