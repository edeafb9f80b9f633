"""The ids of texts that come again: system prompts, and the history that every turn sends anew.

Added tokens such as ``<|end|>`` are found in the raw text before anything else looks at it, so no token
reaches across one. Between two of them lies a *segment*, and its ids depend on its text alone: they are
kept by exactly that text, within a budget of bytes, least recently used out first. A tokenizer for which
this cannot be said gets no cache: one with dropout, or one that treats the start of a text in a way of its
own.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import msgspec

from dynamo_sdk.types import PackedTokens, pack_tokens, unpack_tokens

from .encode import Encode
from .tokenizer_file import Stage, TokenizerFile, steps

CACHE_BYTES = 32 * 2**20
"""About three million tokens of English with their text."""

_MAX_SHARE = 8
"""One segment takes at most this fraction of the budget; a longer one is encoded every time."""
_ENTRY_BYTES = 200
"""What an entry takes beside its text and ids."""

_LOCAL_MODELS = {"BPE", "Unigram", "WordPiece", "WordLevel"}
_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Replace", "Prepend"}
_LOCAL_PRE_TOKENIZERS = {
    "ByteLevel", "Split", "Metaspace", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit",
    "BertPreTokenizer",
}  # fmt: skip


class SegmentCache:
    """A map from text to ids that holds at most ``budget_bytes``. Safe to use from several threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[str, PackedTokens] = OrderedDict()
        self._lock = Lock()
        self.num_bytes = 0

    def get(self, text: str) -> PackedTokens | None:
        with self._lock:
            packed = self._entries.get(text)
            if packed is not None:
                self._entries.move_to_end(text)
            return packed

    def put(self, text: str, packed: PackedTokens) -> None:
        num_bytes = _entry_bytes(text, packed)
        if num_bytes > self._budget_bytes // _MAX_SHARE:
            return
        with self._lock:
            if text in self._entries:  # another thread was faster
                return
            self._entries[text] = packed
            self.num_bytes += num_bytes
            while self.num_bytes > self._budget_bytes:
                self.num_bytes -= _entry_bytes(*self._entries.popitem(last=False))

    def __len__(self) -> int:
        return len(self._entries)


def _entry_bytes(text: str, packed: PackedTokens) -> int:
    return sys.getsizeof(text) + len(packed) + _ENTRY_BYTES


class SegmentEncoder:
    """``encode``, but each segment between two ``boundaries`` (added tokens and their ids) only once."""

    def __init__(self, encode: Encode, boundaries: dict[str, int], cache: SegmentCache) -> None:
        longest_first = sorted(boundaries, key=len, reverse=True)  # as added tokens are matched
        self._boundary = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._boundaries = boundaries
        self._encode = encode
        self._cache = cache

    def __call__(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if add_special_tokens:  # what is added depends on the whole text
            return self._encode(text, add_special_tokens=True)
        ids: list[int] = []
        for index, part in enumerate(self._boundary.split(text)):
            if index % 2:
                ids.append(self._boundaries[part])
            elif part:
                ids += self._segment(part)
        return ids

    def _segment(self, text: str) -> list[int]:
        packed = self._cache.get(text)
        if packed is not None:
            return unpack_tokens(packed)
        ids = self._encode(text, add_special_tokens=False)
        self._cache.put(text, pack_tokens(ids))
        return ids


def with_segment_cache(
    encode: Encode, tokenizer_json: bytes, token_to_id: Callable[[str], int | None]
) -> Encode:
    """``encode`` with a cache of its own, or as it was where segments cannot be told apart safely."""
    boundaries = find_boundaries(tokenizer_json, token_to_id)
    return SegmentEncoder(encode, boundaries, SegmentCache(CACHE_BYTES)) if boundaries else encode


def find_boundaries(tokenizer_json: bytes, token_to_id: Callable[[str], int | None]) -> dict[str, int]:
    """The added tokens that no other token reaches across, with their ids; empty: do not cut the text."""
    try:
        file = msgspec.json.decode(tokenizer_json, type=TokenizerFile)
    except msgspec.DecodeError:
        return {}
    raw = [token for token in file.added_tokens if not token.normalized and token.content]
    # One that looks at its surroundings can take a space from a segment, or leave a match to a shorter one.
    if not _is_local(file) or not all(token.is_verbatim for token in raw):
        return {}
    ids = {token.content: token_to_id(token.content) for token in raw}
    return {content: token_id for content, token_id in ids.items() if token_id is not None}


def _is_local(file: TokenizerFile) -> bool:
    """Whether every stage treats each segment on its own, and the same way each time."""
    words = steps(file.pre_tokenizer)
    return (
        file.model.get("type") in _LOCAL_MODELS
        and not file.model.get("dropout")
        and all(step.get("type") in _LOCAL_NORMALIZERS for step in steps(file.normalizer))
        and all(step.get("type") in _LOCAL_PRE_TOKENIZERS and not _sees_the_start(step) for step in words)
    )


def _sees_the_start(step: Stage) -> bool:
    return step.get("prepend_scheme") == "first"
