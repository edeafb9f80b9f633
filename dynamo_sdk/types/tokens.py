"""Token ids, packed: little-endian unsigned 32-bit integers, four bytes a token.

A prompt is read by the tokenizer, the wire, the block hash and the engine. Packed, it is encoded once,
sliced and hashed without a copy, and costs four bytes a token on the wire (a list costs up to five and
a Python object each).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import NewType

PackedTokens = NewType("PackedTokens", bytes)

BYTES_PER_TOKEN = 4
NO_TOKENS = PackedTokens(b"")


def pack_tokens(token_ids: Iterable[int]) -> PackedTokens:
    """Pack ids; raises ``OverflowError`` for an id outside 0 .. 2**32 - 1."""
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return PackedTokens(packed.tobytes())


def unpack_tokens(packed: bytes | memoryview) -> list[int]:
    """The ids as a list; raises ``ValueError`` when the length is no multiple of four."""
    ids = array("I")
    ids.frombytes(packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


def num_tokens(packed: bytes) -> int:
    return len(packed) // BYTES_PER_TOKEN
