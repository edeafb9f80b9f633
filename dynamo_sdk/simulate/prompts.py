"""Prompts of a simulation: real packed tokens, and block keys that are known without hashing them.

A trace names pieces of prompts by ids. A piece is its number, said over and over; a block of the engine is
known by the pieces before it and its place in the last one, so its key can be a number that is looked up
instead of a hash that is computed. Blocks that an engine adds later (its output) go on from there as always.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import cache_keys, cache_root
from dynamo_sdk.kv.hashing import CACHE_KEY_BYTES
from dynamo_sdk.types import PackedTokens
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN

from .arrivals import Arrival

_HASH_BYTES = 8
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_UINT64_MASK = (1 << 64) - 1

FIRST_OWN_TOKEN = 1 << 31
"""Ids below name pieces of a trace; above, each request has two of its own: for the rest of its prompt, and
for its output."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """``keys``: of its full blocks; ``hashes``: the first eight bytes of each, as KV events name them."""

    tokens: PackedTokens
    keys: list[CacheKey]
    hashes: bytes


class PromptBook:
    """Makes the prompts of one workload for engines of one ``block_size``."""

    def __init__(self, *, block_tokens: int, block_size: int) -> None:
        self._block_tokens = block_tokens
        self._block_size = block_size
        self._numbers: dict[int, int] = {}  # of hash ids
        self._nodes: dict[tuple[int, int], int] = {}  # (node before, number of a piece) -> node
        self._keys_of: list[list[CacheKey]] = [[]]  # of each node's blocks
        self._num_keys = 0

    def prompt(self, arrival: Arrival, index: int) -> Prompt:
        """The prompt of request ``index``, which nobody else has."""
        num_tokens, size = arrival.num_input_tokens, self._block_tokens
        numbers = [
            self._numbers.setdefault(hash_id, len(self._numbers))
            for hash_id in arrival.hash_ids[: -(-num_tokens // size)]
        ]
        pieces = [number.to_bytes(BYTES_PER_TOKEN, "little") * size for number in numbers]
        num_own = max(0, num_tokens - len(pieces) * size)
        pieces.append(own_token(index).to_bytes(BYTES_PER_TOKEN, "little") * num_own)
        tokens = PackedTokens(b"".join(pieces)[: num_tokens * BYTES_PER_TOKEN])
        if size % self._block_size:  # blocks reach across pieces
            keys = cache_keys(tokens, self._block_size, root=cache_root(b""))
        else:
            keys = self._keys(numbers, num_tokens // self._block_size)
        hashes = b"".join([key[:_HASH_BYTES] for key in keys])
        return Prompt(tokens, keys, hashes)

    def _keys(self, numbers: list[int], num_blocks: int) -> list[CacheKey]:
        keys: list[CacheKey] = []
        node = 0
        for number in numbers:
            found = self._nodes.get((node, number))
            if found is None:
                found = self._nodes[node, number] = len(self._keys_of)
                self._keys_of.append(self._new_keys(self._block_tokens // self._block_size))
            node = found
            keys += self._keys_of[node]
        if len(keys) < num_blocks:
            keys += self._new_keys(num_blocks - len(keys))
        return keys[:num_blocks]

    def _new_keys(self, num_keys: int) -> list[CacheKey]:
        first = self._num_keys + 1
        self._num_keys += num_keys
        return [
            CacheKey((number * _GOLDEN_GAMMA & _UINT64_MASK).to_bytes(CACHE_KEY_BYTES, "little"))
            for number in range(first, first + num_keys)
        ]


def own_token(index: int, *, is_output: bool = False) -> int:
    """A token that only request ``index`` has."""
    return FIRST_OWN_TOKEN + 2 * index + is_output
