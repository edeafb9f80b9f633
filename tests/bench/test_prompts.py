from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynamo_sdk
from dynamo_sdk.bench.prompts import PromptSource
from dynamo_sdk.bench.words import COMMON_WORDS, one_token_words
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.preprocess import Tokenizer

DEMO = Path(dynamo_sdk.__file__).parent / "demo_model"
BLOCK = 16
SOURCE = PromptSource(COMMON_WORDS, seed=7, block_tokens=BLOCK)


def num_equal_at_start(first: Sequence[object], second: Sequence[object]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def num_shared_words(first: str, second: str) -> int:
    return num_equal_at_start(first.split(" "), second.split(" "))


@given(st.integers(0, 99), st.integers(1, 1000))
def test_a_prompt_has_the_length_and_depends_on_the_seed_alone(index: int, num_tokens: int) -> None:
    text = SOURCE.distinct(index, num_tokens)
    assert len(text.split(" ")) == num_tokens
    assert text == PromptSource(COMMON_WORDS, seed=7, block_tokens=BLOCK).distinct(index, num_tokens)


def test_prompts_are_distinct_from_the_start() -> None:
    texts = [SOURCE.distinct(index, 300) for index in range(50)]
    other_seed = PromptSource(COMMON_WORDS, seed=8, block_tokens=BLOCK).distinct(0, 300)
    assert max(num_shared_words(texts[0], other) for other in [*texts[1:], other_seed]) < 4


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_prompts_share_what_their_ids_share(a: list[int], b: list[int], len_a: int, len_b: int) -> None:
    first, second = SOURCE.shared(a, 1, len_a), SOURCE.shared(b, 2, len_b)
    assert (len(first.split(" ")), len(second.split(" "))) == (len_a, len_b)
    num_equal = num_equal_at_start(a, b) * BLOCK
    covered = min(len_a, len_b, len(a) * BLOCK, len(b) * BLOCK)
    shared = num_shared_words(first, second)
    assert shared >= min(num_equal, covered)
    if num_equal + 4 < covered:
        assert shared < num_equal + 4, "what the ids do not share differs"


def test_the_demo_tokenizer_counts_as_many_tokens_as_asked() -> None:
    tokenizer = Tokenizer.load(DEMO)
    words = one_token_words(tokenizer)
    text = "the " + PromptSource(words, seed=1, block_tokens=512).distinct(0, 500)
    base = len(tokenizer.encode("the", add_special_tokens=False))
    assert len(tokenizer.encode(text, add_special_tokens=False)) == base + 500


class Characters:
    """A tokenizer of single letters."""

    vocab_size = 256

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="only 0 words"):
        one_token_words(Characters())  # type: ignore[arg-type]
