"""The matcher against a naive search of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.preprocess import StopStringMatcher

_ALPHABET = "abé]^-\\"
"""Few letters, so that stop strings occur; and what means something in a pattern."""
_text = st.text(alphabet=_ALPHABET, max_size=30)
_stops = st.lists(st.text(alphabet=_ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4)


def _naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text before the stop string that is complete first; of those the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], text[min(starts) : end]
    return text, None


@given(pieces=st.lists(_text, max_size=10), stops=_stops)
def test_equals_the_naive_search_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStringMatcher(stops)
    released = "".join(matcher.push(piece) for piece in pieces)
    if matcher.hit is None:
        released += matcher.finish()
    assert (released, matcher.hit) == _naive("".join(pieces), stops)


@given(pieces=st.lists(_text, max_size=10), stops=_stops)
def test_never_releases_what_a_stop_string_could_begin_with(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStringMatcher(stops)
    text = released = ""
    for piece in pieces:
        text += piece
        released += matcher.push(piece)
        if matcher.hit is not None:
            return
        held = text[len(released) :]
        assert text.startswith(released)
        assert not held or any(stop.startswith(held) for stop in stops)
        # Nothing is held back without need, and nothing that is needed is let out.
        ends = [text[start:] for start in range(len(text))]
        longest = max((len(end) for end in ends if any(s.startswith(end) for s in stops)), default=0)
        assert len(held) == longest


def test_a_hit_is_final() -> None:
    matcher = StopStringMatcher(["END"])
    assert matcher.push("to the E") == "to the "
    assert matcher.push("ND and more") == ""
    assert matcher.push("nothing") == ""
    assert matcher.finish() == ""
    assert matcher.hit == "END"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStringMatcher(["a", ""])


def test_without_stop_strings_all_text_passes() -> None:
    matcher = StopStringMatcher([])
    assert matcher.push("any]text") + matcher.finish() == "any]text"
