"""Which tokens are said."""

from __future__ import annotations

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dynamo_sdk.engines.mocker import MockerConfig, TokenSource, build_cores
from dynamo_sdk.runtime.model_path import resolve_model_path
from dynamo_sdk.types import FinishReason, SamplingParams

from .virtual import ask, new_core, prompt, run


def sampling(seed: int = 0, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=100, seed=seed, **more)  # type: ignore[arg-type]


@given(seed=st.integers(-(2**64), 2**64), position=st.integers(0, 10**6), first=st.integers(0, 1000))
def test_ids_are_in_range_and_reproducible(seed: int, position: int, first: int) -> None:
    token_id = TokenSource(first, first + 50).next_id(sampling(seed), position)
    assert first <= token_id < first + 50
    assert token_id == TokenSource(first, first + 50).next_id(sampling(seed), position)


def test_known_bytes() -> None:
    """Equal on every machine and in every version: recorded traces depend on it."""
    source = TokenSource(100, 1100)
    assert [source.next_id(sampling(7), position) for position in range(6)] == [511, 999, 857, 616, 1073, 828]


def test_seeds_and_positions_differ() -> None:
    source = TokenSource(0, 2**31)
    said = {source.next_id(sampling(seed), position) for seed in range(100) for position in range(100)}
    assert len(said) == 10_000


def test_all_ids_are_said_about_equally_often() -> None:
    source = TokenSource(0, 10)
    counts = [0] * 10
    for position in range(10_000):
        counts[source.next_id(sampling(3), position)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_the_end_token_is_never_said_unless_asked() -> None:
    source = TokenSource(0, 5, eos_token_ids=(2, 9))
    assert {source.next_id(sampling(), position) for position in range(200)} == {0, 1, 3, 4}


@pytest.mark.parametrize(
    ("more", "first_end"),
    [({}, 4), ({"min_tokens": 7}, 6), ({"min_tokens": 2}, 4), ({"ignore_eos": True}, None)],
)
def test_the_end_token_where_it_was_asked_for(more: dict[str, object], first_end: int | None) -> None:
    source = TokenSource(0, 5, eos_token_ids=(2,), eos_after_tokens=5)
    said = [source.next_id(sampling(**more), position) for position in range(20)]
    assert (said.index(2) if 2 in said else None) == first_end


@pytest.mark.parametrize(
    ("first", "end", "more", "message"),
    [
        (5, 5, {}, "no token ids to say from 5 up to 5"),
        (2, 3, {"eos_token_ids": (2,)}, "no token ids"),
        (0, 5, {"eos_after_tokens": 3}, "needs a model that has an end token"),
    ],
)
def test_nothing_to_say(first: int, end: int, more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenSource(first, end, **more)  # type: ignore[arg-type]


def test_by_default_the_demo_model_says_readable_text() -> None:
    folder = resolve_model_path("demo")
    (core,) = build_cores(str(folder), MockerConfig())
    tokenizer = Tokenizer.from_file(str(files("dynamo_sdk").joinpath("demo_model/tokenizer.json")))
    lives = run(core, [(0.0, ask(f"r{seed}", prompt(9), 200)) for seed in range(3)])
    for life in lives.values():
        assert life.finish_reason is FinishReason.LENGTH
        text = tokenizer.decode(life.token_ids)
        assert text.isprintable()
        assert len(text) > 200


def test_the_demo_model_ends_where_it_is_asked_to() -> None:
    (core,) = build_cores(str(resolve_model_path("demo")), MockerConfig(eos_after_tokens=5))
    life = run(core, [(0.0, ask("a", prompt(9), 200))])["a"]
    assert (len(life.token_ids), life.token_ids[-1], life.finish_reason) == (5, 1, FinishReason.STOP)


def test_the_same_seed_gives_the_same_bytes_alone_and_in_company() -> None:
    alone = run(new_core(), [(0.0, ask("a", prompt(70), 30))])["a"]
    crowd = [
        (float(number), ask(f"r{number}", prompt(50 + number, first=number), 40)) for number in range(20)
    ]
    in_company = run(new_core(num_blocks=24), [*crowd, (25.0, ask("a", prompt(70), 30))])["a"]
    assert in_company.token_ids == alone.token_ids
