from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from dynamo_sdk.preprocess.encode import Encode, plain_encoder
from dynamo_sdk.preprocess.segment_cache import (
    SegmentCache,
    SegmentEncoder,
    find_boundaries,
    with_segment_cache,
)
from dynamo_sdk.types import pack_tokens, unpack_tokens

from . import tokenizers_for_tests as build


def tokens_in_tokens() -> Tokenizer:
    """Added tokens that begin with one another, one that is normalized, and one of spaces."""
    tokenizer = build.byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<s>>", "<s", "a<s>", "  ")])
    tokenizer.add_tokens([AddedToken("\xe9t\xe9", normalized=True), AddedToken("wo", single_word=True)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": build.byte_level,
    "tokens in tokens": tokens_in_tokens,
    "prepends, strips": lambda: build.byte_fallback(strips=True),
    "prepends": lambda: build.byte_fallback(strips=False),
    "metaspace": build.metaspace,
    "word piece": build.word_piece,
}


@cache
def kind(name: str) -> tuple[Encode, dict[str, int]]:
    tokenizer = KINDS[name]()
    return plain_encoder(tokenizer), find_boundaries(tokenizer.to_str().encode(), tokenizer.token_to_id)


MARKS = [
    "<s>",
    "</s>",
    "<unk>",
    "<tool call>",
    "<s>>",
    "<s",
    "a<s>",
    "  ",
    "\xe9t\xe9",
    "e\u0301te\u0301",
    "wo",
]
SEGMENTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(MARKS),
    st.sampled_from([" ", "a", "block", " a", "\n", *build.TEXTS]),
)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60)
@given(turns=st.lists(st.lists(SEGMENTS, max_size=6), max_size=6))
def test_a_conversation_gets_the_ids_it_gets_without_a_cache(name: str, turns: list[list[str]]) -> None:
    plain, boundaries = kind(name)
    assert boundaries
    cache_ = SegmentCache(budget_bytes=6000)
    cached = SegmentEncoder(plain, boundaries, cache_)
    history = ""
    for turn in turns:
        history += "<s>" + "".join(turn) + "</s>"
        for add_special_tokens in (False, True, False):
            expected = plain(history, add_special_tokens=add_special_tokens)
            assert cached(history, add_special_tokens=add_special_tokens) == expected
        assert cache_.num_bytes <= 6000


@pytest.mark.parametrize("wrong", ["o", " ", "KV"])
def test_a_wrong_boundary_would_be_noticed(wrong: str) -> None:
    plain, boundaries = kind("byte level")
    wrong_id = plain(wrong, add_special_tokens=False)[0]
    text = "<s>" + build.TEXTS[0] * 2 + "</s>"
    planted = SegmentEncoder(plain, {**boundaries, wrong: wrong_id}, SegmentCache(10**6))
    assert planted(text, add_special_tokens=False) != plain(text, add_special_tokens=False)


def first_only() -> Tokenizer:
    tokenizer = build.metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def with_token(token: AddedToken) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = build.byte_level()
        tokenizer.add_tokens([token])
        return tokenizer

    return make


def with_dropout() -> Tokenizer:
    tokenizer = build.byte_level()
    tokenizer.model = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5)
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        first_only,
        with_dropout,
        with_token(AddedToken("<l>", lstrip=True, normalized=False)),
        with_token(AddedToken("<r>", rstrip=True, normalized=False)),
        with_token(AddedToken("word", single_word=True, normalized=False)),
    ],
)
def test_where_segments_are_not_independent_there_is_no_cache(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    plain = plain_encoder(tokenizer)
    assert with_segment_cache(plain, tokenizer.to_str().encode(), tokenizer.token_to_id) is plain


def test_a_start_of_its_own_is_why() -> None:
    """With this scheme the same segment has other ids at the start of a text."""
    tokenizer = first_only()
    plain = plain_encoder(tokenizer)
    forced = SegmentEncoder(plain, {"<s>": tokenizer.token_to_id("<s>")}, SegmentCache(10**6))
    text = "a<s>a"
    assert forced(text, add_special_tokens=False) != plain(text, add_special_tokens=False)


def test_stages_that_are_not_known_get_no_cache() -> None:
    file: dict[str, Any] = json.loads(build.byte_level().to_str())
    assert find_boundaries(json.dumps(file).encode(), lambda token: 1)
    unknown = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Precompiled"}]}
    for change in ({"normalizer": unknown}, {"pre_tokenizer": {"type": "New"}}, {"model": {"type": "New"}}):
        assert find_boundaries(json.dumps({**file, **change}).encode(), lambda token: 1) == {}
    assert find_boundaries(b"[]", lambda token: 1) == {}


def test_what_comes_again_is_not_encoded_again() -> None:
    plain, boundaries = kind("byte level")
    asked: list[str] = []

    def spy(text: str, *, add_special_tokens: bool) -> list[int]:
        asked.append(text)
        return plain(text, add_special_tokens=add_special_tokens)

    cached = SegmentEncoder(spy, boundaries, SegmentCache(10**6))
    cached("<s>system</s>question", add_special_tokens=False)
    cached("<s>system</s>question</s>answer</s>", add_special_tokens=False)
    assert asked == ["system", "question", "answer"]


# -- the cache


@given(
    budget_bytes=st.integers(0, 20_000),
    calls=st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh"), st.integers(1, 60)), max_size=60),
)
def test_it_is_a_bounded_map_of_what_was_used_last(
    budget_bytes: int, calls: list[tuple[bool, str, int]]
) -> None:
    cache_ = SegmentCache(budget_bytes)
    used: list[str] = []  # least recently first
    for is_put, letter, length in calls:
        text = letter * length
        packed = pack_tokens([ord(letter)] * length)
        if is_put:
            cache_.put(text, packed)
        found = cache_.get(text)
        if found is not None:
            assert unpack_tokens(found) == [ord(letter)] * length
            used = [other for other in used if other != text] + [text]
        else:
            used = [other for other in used if other != text]
        assert cache_.num_bytes <= budget_bytes
        assert (len(cache_) == 0) == (cache_.num_bytes == 0)
    kept = used[len(used) - len(cache_) :]
    assert all(cache_.get(text) is not None for text in kept), "those used last are those kept"


def test_one_long_segment_does_not_push_out_all_others() -> None:
    cache_ = SegmentCache(8000)
    cache_.put("short", pack_tokens([1]))
    cache_.put("x" * 1000, pack_tokens([2]))
    assert cache_.get("x" * 1000) is None
    assert cache_.get("short") is not None


def test_threads_leave_it_in_order() -> None:
    cache_ = SegmentCache(20_000)

    def work() -> None:
        for index in range(2000):
            text = str(index % 300)
            if cache_.get(text) is None:
                cache_.put(text, pack_tokens([index % 300]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {text: cache_.get(text) for text in map(str, range(300))}
    held = {text: packed for text, packed in found.items() if packed is not None}
    assert len(held) == len(cache_) > 0
    assert all(unpack_tokens(packed) == [int(text)] for text, packed in held.items())
    assert cache_.num_bytes <= 20_000
