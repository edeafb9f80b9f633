"""Prompt texts of a wanted length: distinct ones, and ones that share prefixes as a trace says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

_PIECE_WORDS = 64
_NUM_PIECES = 2048
_NUM_CACHED_BLOCKS = 4096


class PromptSource:
    """The same seed gives the same texts. ``block_tokens``: length of what one hash id of a trace names.

    Long texts are made of ready pieces, so that their making does not delay the load; the first 64
    words are drawn one by one, which keeps the prefixes of two prompts apart.
    """

    def __init__(self, words: Sequence[str], *, seed: int, block_tokens: int) -> None:
        self._words = words
        self._seed = seed
        self._block_tokens = block_tokens
        rng = Random(f"{seed}:pieces")
        self._pieces = [" ".join(rng.choices(words, k=_PIECE_WORDS)) for _ in range(_NUM_PIECES)]
        self._block = lru_cache(_NUM_CACHED_BLOCKS)(self._new_block)

    def distinct(self, index: int, num_tokens: int) -> str:
        """The text of request ``index``: shares no prefix with another, but for chance."""
        return self._text(Random(f"{self._seed}:request:{index}"), num_tokens)

    def shared(self, hash_ids: Sequence[int], index: int, num_tokens: int) -> str:
        """Equal ids at the start give equal text at the start. What the ids do not cover is distinct."""
        num_whole, num_rest = divmod(num_tokens, self._block_tokens)
        blocks = [self._block(hash_id) for hash_id in hash_ids[:num_whole]]
        num_missing = num_tokens - len(blocks) * self._block_tokens
        if num_whole < len(hash_ids) and num_rest:
            # The last block of a request is seldom full: a prefix of the text that its id names.
            blocks.append(" ".join(self._block(hash_ids[num_whole]).split(" ", num_rest)[:num_rest]))
        elif num_missing:
            blocks.append(self.distinct(index, num_missing))
        return " ".join(blocks)

    def _new_block(self, hash_id: int) -> str:
        return self._text(Random(f"{self._seed}:block:{hash_id}"), self._block_tokens)

    def _text(self, rng: Random, num_tokens: int) -> str:
        num_pieces = max(0, num_tokens // _PIECE_WORDS - 1)
        words = rng.choices(self._words, k=num_tokens - num_pieces * _PIECE_WORDS)
        return " ".join([*words, *rng.choices(self._pieces, k=num_pieces)])
