"""Concatenated deltas against decoding all ids at once, for each decoder family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from dynamo_sdk.preprocess import Detokenizer, Tokenizer
from dynamo_sdk.preprocess.detokenizer import TableDetokenizer, WindowDetokenizer

from . import tokenizers_for_tests as build

_FAMILIES: dict[str, Callable[[], HfTokenizer]] = {
    "byte level": build.byte_level,
    "byte fallback, strips": lambda: build.byte_fallback(strips=True),
    "byte fallback": lambda: build.byte_fallback(strips=False),
    "metaspace": build.metaspace,
    "word piece": build.word_piece,
}
_cut = st.lists(st.integers(1, 4), max_size=40)


@pytest.fixture(scope="module", params=list(_FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.load(build.save(_FAMILIES[request.param](), folder))


def stream(detokenizer: Detokenizer, token_ids: Sequence[int], cut: Sequence[int]) -> str:
    text, start = "", 0
    for size in [*cut, *([1] * len(token_ids))]:
        text += detokenizer.push(token_ids[start : start + size])
        start += size
    return text + detokenizer.finish()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data(), cut=_cut, skips=st.booleans())
def test_deltas_add_up_to_the_whole_decoding(
    family: Tokenizer, data: st.DataObject, cut: list[int], skips: bool
) -> None:
    token_ids = data.draw(st.lists(st.integers(0, family.vocab_size - 1), max_size=30))
    whole = family.decode(token_ids, skip_special_tokens=skips)
    # Where bytes never become a character, byte fallback marks each byte of the whole run, also those
    # that had been shown as characters already; no stream can take those back.
    is_table = isinstance(family.detokenizer(), TableDetokenizer)
    assume("\ufffd" not in whole or is_byte_level(family) or not is_table)
    detokenizer = family.detokenizer(skip_special_tokens=skips)
    assert stream(detokenizer, token_ids, cut) == whole


def is_byte_level(tokenizer: Tokenizer) -> bool:
    return tokenizer.token_bytes(tokenizer.encode("é", add_special_tokens=False)[0]) == "é".encode()[:1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), cut=_cut)
def test_text_comes_back_and_no_delta_splits_a_character(
    tmp_path_factory: pytest.TempPathFactory, text: str, cut: list[int]
) -> None:
    tokenizer = _byte_level(tmp_path_factory)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = tokenizer.detokenizer(skip_special_tokens=False)
    so_far = ""
    for token_id in token_ids:
        so_far += detokenizer.push((token_id,))
        assert text.startswith(so_far)
    assert so_far + detokenizer.finish() == text


_cache: list[Tokenizer] = []


def _byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if not _cache:
        _cache.append(Tokenizer.load(build.save(build.byte_level(), tmp_path_factory.mktemp("bytes"))))
    return _cache[0]


def test_a_continuation_keeps_its_leading_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(build.save(build.byte_fallback(strips=True), tmp_path))
    block = tokenizer.encode("block", add_special_tokens=False)
    own = tokenizer.detokenizer(at_start=True)
    continued = tokenizer.detokenizer(at_start=False, after=block)
    assert own.push(block) + own.finish() == "block"
    assert continued.push(block) + continued.finish() == " block"


def test_a_window_continues_the_prompt(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(build.save(build.word_piece(), tmp_path))
    prompt = tokenizer.encode("a block", add_special_tokens=False)
    more = tokenizer.encode("running.", add_special_tokens=False)
    detokenizer = tokenizer.detokenizer(at_start=False, after=prompt)
    assert isinstance(detokenizer, WindowDetokenizer)
    assert stream(detokenizer, more, []) == " running."


def test_ids_outside_the_vocabulary_add_nothing(family: Tokenizer) -> None:
    detokenizer = family.detokenizer()
    assert detokenizer.push((family.vocab_size + 7,)) + detokenizer.finish() == ""


def test_an_unfinished_character_ends_as_one_replacement(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(build.save(build.byte_level(), tmp_path))
    token_ids = tokenizer.encode("🙈", add_special_tokens=False)
    assert len(token_ids) > 1
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(token_ids[:-1]) == ""
    assert detokenizer.finish() == "\ufffd"
