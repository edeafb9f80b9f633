"""YAML comes out as JSON values with lines, or not at all."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.yaml_text import read_yaml
from dynamo_sdk.types.plan import Json


def _read(text: str) -> Json:
    return read_yaml(text, name="a.yaml").value


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 20))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment", None),
        ("~", None),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("1_000", "1_000"),
        ("2026-11-21", "2026-11-21"),
        ("12:30:00", "12:30:00"),
        ("2GiB", "2GiB"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("|\n  12\n", "12\n"),
        ("[1, [a], {b: null}]", [1, ["a"], {"b": None}]),
        ("1: {2: 3}", {"1": {"2": 3}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        (
            "a: &x {b: 1}\nc: &y {b: 2, d: 2}\ne: {<<: [*x, *y]}",
            {"a": {"b": 1}, "c": {"b": 2, "d": 2}, "e": {"b": 1, "d": 2}},
        ),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Json) -> None:
    found = _read(text)
    assert found == value
    assert type(found) is type(value)


def test_every_key_has_its_line() -> None:
    source = read_yaml("a:\n  b: 1\n\n  c:\n    - d: 2\ne: {f: 3}\n", name="a.yaml")
    assert source.lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 4, ("e",): 6, ("e", "f"): 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "a.yaml, line 1, column 5: not YAML"),
        ("a: 1\nb: 2\na: 3", "a.yaml, line 3: a: given twice"),
        ("a: {b: 1, b: 2}", "a.yaml, line 1: a.b: given twice"),
        ("a: !!python/object:os.system x", "a.yaml, line 1: a: the tag"),
        ("a: !secret x", "the tag '!secret' is not supported"),
        ("a: !!binary aGk=", "is not supported"),
        ("? [a, b]\n: 1", "a key must be a plain name"),
        ("a: &x [*x]", "nested too deeply"),
        ("a: &x {<<: *x}", "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("a: *nothing", "undefined alias"),
        ("a: .inf", "numbers are finite, .inf is not"),
        ("a: 1e999", "too large"),
        ("a: 9223372036854775808", "64 bits are allowed"),
        ("a: " + "9" * 5000, "the number is too large"),
        ("a: {<<: 3}", "merges mappings only"),
        ("a: \x00", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ('"\\UFFFFFFFF"', "not YAML"),
        ('a: "\\ud800"', "is not Unicode text"),
        (BOMB, "counting repeated aliases"),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(text)
    assert message in caught.value.message
    assert caught.value.message.startswith("a.yaml")


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\ufffe\uffff")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_JSON)
def test_json_is_yaml(value: Json) -> None:
    assert _read(json.dumps(value)) == value


@given(st.text(max_size=60) | st.text("{}[]:,&*!|>'\"#-?<~\n\t ab01.e\\%@", max_size=60))
def test_any_text_gives_json_or_a_config_error(text: str) -> None:
    try:
        value = _read(text)
    except ConfigError:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert not isinstance(value, float) or math.isfinite(value)
