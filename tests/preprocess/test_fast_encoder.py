from __future__ import annotations

import json
import logging
import re
import threading
import tomllib
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

import dynamo_sdk
from dynamo_sdk.preprocess import Tokenizer
from dynamo_sdk.preprocess.encode import Encode, plain_encoder
from dynamo_sdk.preprocess.fast_encoder import (
    SPLIT_PATTERNS,
    TESTED_VERSION,
    load_fast_encoder,
    probe_obstacle,
    shape_obstacle,
)
from dynamo_sdk.preprocess.probe_texts import PROBE_TEXTS

DEMO = Path(dynamo_sdk.__file__).parent / "demo_model"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
MONGOLIAN_VOWEL_SEPARATOR = "\u180e"


def added(content: str, token_id: int, **options: bool) -> dict[str, Any]:
    plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
    return {"id": token_id, "content": content, **plain, **options}


def demo_json(change: Callable[[dict[str, Any]], object] = lambda file: None) -> bytes:
    """The demo model's tokenizer, changed."""
    file = json.loads((DEMO / "tokenizer.json").read_text())
    change(file)
    return json.dumps(file).encode()


def split_by(pattern: str, normalizer: dict[str, Any] | None = None) -> bytes:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

    def change(file: dict[str, Any]) -> None:
        file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}
        file["normalizer"] = normalizer

    return demo_json(change)


def with_odd_tokens(file: dict[str, Any]) -> None:
    first = max(file["model"]["vocab"].values()) + 1
    file["added_tokens"] += [
        added("<l>", first, lstrip=True),
        added("<r>", first + 1, rstrip=True),
        added("zqx", first + 2, normalized=True),
        added("wdq", first + 3, single_word=True),
        added("<|end|>>", first + 4),
    ]


FILES: dict[str, bytes] = {
    "demo": demo_json(),
    "odd added tokens": demo_json(with_odd_tokens),
    "NFC": split_by(SPLIT_PATTERNS["qwen 2"], {"type": "NFC"}),
    **{name: split_by(pattern) for name, pattern in SPLIT_PATTERNS.items()},
}


@cache
def both(name: str) -> tuple[Encode, Encode]:
    pytest.importorskip("fastokens")
    plain = plain_encoder(HfTokenizer.from_buffer(FILES[name]))
    fast = load_fast_encoder(FILES[name], plain)
    assert fast is not None, "the gate lets it through"
    return plain, fast


# -- equality

NASTY = st.one_of(
    st.text(max_size=6),
    st.text(st.characters(categories=["Zs", "Zl", "Zp", "Cc", "Cf"]), max_size=4),
    st.text(st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Mn", "Mc"]), max_size=5),
    st.text(st.characters(categories=["Nd", "Nl", "No"]), max_size=5),
    st.text("'\u2019sStTrRvVmMlLdD\u017f\u212a", max_size=3),
    st.sampled_from([" ", "  ", "\n", "\r\n", " \n ", "\t", MONGOLIAN_VOWEL_SEPARATOR]),
    st.sampled_from(["<|begin|>", "<|end|>", "<|end", "|>", "<|end|>>", "<l>", "<r>", "zqx", "wdq"]),
    st.sampled_from(PROBE_TEXTS),
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(pieces=st.lists(NASTY, max_size=30))
def test_all_ids_are_equal(name: str, pieces: list[str]) -> None:
    plain, fast = both(name)
    text = "".join(pieces)
    for add_special_tokens in (False, True):
        expected = plain(text, add_special_tokens=add_special_tokens)
        assert fast(text, add_special_tokens=add_special_tokens) == expected


@pytest.mark.parametrize("name", [*SPLIT_PATTERNS, "demo", "NFC"])
def test_every_code_point_is_of_the_same_kind(name: str) -> None:
    """One that is a letter, a digit or a space to one side only changes where words end."""
    plain, fast = both(name)
    surrogates = range(0xD800, 0xE000)
    points = [chr(point) for point in range(0x32000) if point not in surrogates]
    for start in range(0, len(points), 100):
        text = "".join(f"a{c}b 1{c}  {c}\n{c}A {c}{c}" for c in points[start : start + 100])
        assert fast(text, add_special_tokens=False) == plain(text, add_special_tokens=False), hex(
            ord(text[1])
        )


@pytest.mark.parametrize("name", ["llama 3", "demo"])
def test_long_texts_are_cut_in_no_other_places(name: str) -> None:
    """Long texts are split by several threads."""
    plain, fast = both(name)
    once = "".join(PROBE_TEXTS)
    for shift in range(4):
        text = "x" * shift + once * 40
        assert fast(text, add_special_tokens=False) == plain(text, add_special_tokens=False)


@settings(max_examples=60)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.2), NASTY), max_size=10))
def test_a_text_like_the_last_one_is_read_anew(edits: list[tuple[float, float, str]]) -> None:
    """The package remembers where it cut the text before."""
    plain, fast = both("llama 3")
    text = "".join(PROBE_TEXTS[:-1])
    for place, share_lost, put_in in edits:
        start = int(place * len(text))
        text = text[:start] + put_in + text[start + int(share_lost * len(text)) :]
        assert fast(text, add_special_tokens=False) == plain(text, add_special_tokens=False)


def test_several_threads_get_the_same_ids() -> None:
    plain, fast = both("llama 3")
    texts = [f"{text} {index} {text[index:]}" for index in range(20) for text in PROBE_TEXTS]
    expected = [plain(text, add_special_tokens=False) for text in texts]
    results: list[list[list[int]]] = []

    def work() -> None:
        results.append([fast(text, add_special_tokens=False) for text in texts])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


# -- the gate


def other_words(file: dict[str, Any]) -> None:
    file["pre_tokenizer"] = json.loads(split_by(r"\s+\S"))["pre_tokenizer"]


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        (lambda file: file.update(model={"type": "WordPiece"}), "no plain byte-level BPE"),
        (lambda file: file["model"].update(dropout=0.1), "no plain byte-level BPE"),
        (lambda file: file["model"].update(byte_fallback=True), "no plain byte-level BPE"),
        (lambda file: file.update(normalizer={"type": "NFKC"}), "normalizer"),
        (lambda file: file.update(pre_tokenizer=None), "splits words"),
        (lambda file: file["pre_tokenizer"].update(add_prefix_space=True), "splits words"),
        (lambda file: file.update(pre_tokenizer={"type": "Metaspace"}), "splits words"),
        (other_words, "splits words"),
        (lambda file: file.pop("model"), "another shape"),
    ],
)
def test_other_shapes_stay_with_tokenizers(change: Callable[[dict[str, Any]], object], obstacle: str) -> None:
    assert shape_obstacle(demo_json()) is None
    found = shape_obstacle(demo_json(change))
    assert found is not None
    assert re.search(obstacle, found)


O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_why_o200k_is_left_out() -> None:
    """The counter-example: a long s after an apostrophe, and then another contraction."""
    fastokens = pytest.importorskip("fastokens")
    file = split_by(O200K)
    text = "S'\u017f'to"
    theirs = fastokens.Tokenizer.from_json_str(file.decode()).encode(text).ids
    assert theirs != plain_encoder(HfTokenizer.from_buffer(file))(text, add_special_tokens=False)
    assert shape_obstacle(file) is not None


def test_why_other_split_patterns_are_left_out() -> None:
    """The counter-example: a space to one side and none to the other."""
    fastokens = pytest.importorskip("fastokens")
    file = split_by(r"\s+(?!\S)|\s+|\S+")
    text = "  " + MONGOLIAN_VOWEL_SEPARATOR
    theirs = fastokens.Tokenizer.from_json_str(file.decode()).encode(text).ids
    plain = plain_encoder(HfTokenizer.from_buffer(file))
    assert theirs != plain(text, add_special_tokens=False)
    assert any(MONGOLIAN_VOWEL_SEPARATOR in probe for probe in PROBE_TEXTS), "the probes would tell"


@pytest.mark.parametrize("unequal_at", [*PROBE_TEXTS, "<|end|>"])
def test_one_unequal_probe_is_enough(unequal_at: str) -> None:
    plain = plain_encoder(HfTokenizer.from_buffer(demo_json()))

    def nearly(text: str, *, add_special_tokens: bool) -> list[int]:
        ids = plain(text, add_special_tokens=add_special_tokens)
        return ids[::-1] if unequal_at in text else ids

    assert probe_obstacle(demo_json(), plain, plain) is None
    found = probe_obstacle(demo_json(), nearly, plain)
    assert found is not None
    assert "differently" in found


def test_a_tokenizer_that_is_read_differently_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    """The file gives a token that the vocabulary already has another id; the two sides disagree on it."""
    pytest.importorskip("fastokens")

    def change(file: dict[str, Any]) -> None:
        known = next(token for token in file["model"]["vocab"] if token.isalpha() and len(token) > 2)
        file["added_tokens"].append(added(known, max(file["model"]["vocab"].values()) + 7))

    file = demo_json(change)
    plain = plain_encoder(HfTokenizer.from_buffer(file))
    with caplog.at_level(logging.WARNING):
        assert load_fast_encoder(file, plain) is None
    assert len(caplog.records) == 1
    assert "not used for this tokenizer: it reads" in caplog.text


def test_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.3.6")
    with caplog.at_level(logging.WARNING):
        assert load_fast_encoder(demo_json(), never) is None
    assert f"its version is 0.3.6, compared was {TESTED_VERSION}" in caplog.text


def test_without_the_package_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with_it = Tokenizer.load(DEMO).encode("a KV block", add_special_tokens=True)
    monkeypatch.setattr(metadata, "version", version)
    assert load_fast_encoder(demo_json(), never) is None
    assert Tokenizer.load(DEMO).encode("a KV block", add_special_tokens=True) == with_it
    assert not caplog.records


def never(text: str, *, add_special_tokens: bool) -> list[int]:
    raise AssertionError("asked without need")


def test_the_extra_names_the_version_that_was_compared() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert extras["fast"] == [f"fastokens=={TESTED_VERSION}"]
