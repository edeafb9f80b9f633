"""Paths are read back as they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.nearest import suggest
from dynamo_sdk.graph.paths import format_path, leaves, parse_path
from dynamo_sdk.types.plan import Json


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("router", ("router",)),
        ("services.Decode.replicas", ("services", "Decode", "replicas")),
        ('models."llama-3.1".path', ("models", "llama-3.1", "path")),
        ("models.meta/llama.path", ("models", "meta/llama", "path")),
    ],
)
def test_paths_are_split_at_dots(text: str, path: tuple[str, ...]) -> None:
    assert parse_path(text) == path
    assert format_path(path) == text


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", 'a."', '"a"b', 'a"b".c'])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a path"):
        parse_path(text)


def test_positions_in_lists_are_shown_in_brackets() -> None:
    assert format_path(("kv", "tiers", 0, "kind")) == "kv.tiers[0].kind"


@given(st.lists(st.text(st.characters(exclude_characters='"'), min_size=1), min_size=1, max_size=4))
def test_format_and_parse_are_inverse(keys: list[str]) -> None:
    assert parse_path(format_path(keys)) == tuple(keys)


def test_leaves_stop_at_lists_and_empty_mappings() -> None:
    value: Json = {"a": {"b": 1, "c": [{"d": 2}]}, "e": {}}
    assert list(leaves(value, ("x",))) == [
        (("x", "a", "b"), 1),
        (("x", "a", "c"), [{"d": 2}]),
        (("x", "e"), {}),
    ]


def test_suggestions_name_the_nearest_and_all() -> None:
    assert suggest("replcas", ["replicas", "gpus"]) == "; did you mean 'replicas'? (known: gpus, replicas)"
    assert suggest("decode", ["Decode"], noun="services") == "; did you mean 'Decode'? (services: Decode)"
    assert suggest("zzz", ["gpus"]) == " (known: gpus)"
    assert suggest("zzz", []) == " (known: none)"
