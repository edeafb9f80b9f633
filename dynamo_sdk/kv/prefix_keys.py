"""Keys of prefixes: one number per full block of a prompt, which stands for the block and all before it.

``key[i]`` is the sum of ``block_hash[j] * odd[j]`` over ``j <= i``, modulo 2**64; ``odd`` is a fixed random
odd number per position. Equal prefixes have equal keys, other ones with a chance of about 2**-64. From that
follows what a search can use: two prompts whose keys agree at block ``i`` agree at every block before it.

Why not ``routing_hashes``: a chain of hashes is one call per block, each waiting for the one before. A sum is
one multiplication and one addition over the whole array, which is what an index can afford per event. The
block hashes under it are the same, so whoever sends those (as NVIDIA Dynamo's events do) is understood.

The key of a prefix is a hint about where to route, never a proof of what is cached.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from .hashing import block_hashes, routing_seed

PrefixKeys = memoryview
"""Keys, one item of type ``int`` per block; a view, so that nothing is made of what nobody looks at."""

_UINT64_MASK = (1 << 64) - 1
_WORD = np.dtype("<u8")
_WORD_BYTES = 8
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIN_TABLE_BITS = 14
_MIN_TABLE = (1 << _MIN_TABLE_BITS) - 1


def prefix_keys(
    tokens: bytes, block_size: int, *, lora: str | None = None, cache_salt: str | None = None
) -> PrefixKeys:
    """One key per full block of packed ``tokens``. An adapter or a salt gives the same tokens other keys."""
    seed = routing_seed(lora=lora, cache_salt=cache_salt)
    return extend_keys(0, 0, pack_words(block_hashes(tokens, block_size, seed=seed)))


def extend_keys(key: int, position: int, hashes: bytes) -> PrefixKeys:
    """The keys of blocks that follow ``position`` blocks, the last of which has ``key`` (0 at the start).

    ``hashes``: their block hashes, packed as little-endian 64-bit words.
    """
    end = position + len(hashes) // _WORD_BYTES
    odd = _odd_numbers(end.bit_length() if end > _MIN_TABLE else _MIN_TABLE_BITS)
    terms = np.multiply(np.frombuffer(hashes, _WORD), odd[position:end])
    if key and end > position:
        terms[0] = (terms.item(0) + key) & _UINT64_MASK
    return np.add.accumulate(terms).data


def hashes_of_keys(keys: Sequence[int], *, key: int, position: int) -> bytes:
    """What ``extend_keys`` made ``keys`` of: the block hashes, packed."""
    end = position + len(keys)
    inverse = _inverses(end.bit_length() if end > _MIN_TABLE else _MIN_TABLE_BITS)[position:end]
    steps = np.diff(np.array(keys, np.uint64), prepend=np.uint64(key))
    return np.multiply(steps, inverse).astype(_WORD, copy=False).tobytes()


def pack_words(words: Sequence[int]) -> bytes:
    """64-bit numbers as little-endian bytes."""
    packed = array("Q", words)
    if not _WORD.isnative:
        packed.byteswap()
    return packed.tobytes()


def unpack_words(packed: bytes) -> array[int]:
    """What ``pack_words`` packed. Raises ``ValueError`` when the length is no multiple of eight."""
    words = array("Q", packed)
    if not _WORD.isnative:
        words.byteswap()
    return words


@cache
def _odd_numbers(bits: int) -> npt.NDArray[np.uint64]:
    """``2**bits`` of them; a longer table begins like a shorter one. (SplitMix64 of the position.)"""
    mixed = (np.arange(1, (1 << bits) + 1, dtype=np.uint64)) * np.uint64(_GOLDEN_GAMMA)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


@cache
def _inverses(bits: int) -> npt.NDArray[np.uint64]:
    """Of the odd numbers, modulo 2**64. (Newton: each round doubles the low bits that are right; 3 are.)"""
    odd = _odd_numbers(bits)
    inverse = odd
    for _ in range(5):
        inverse = inverse * (np.uint64(2) - odd * inverse)
    return inverse
