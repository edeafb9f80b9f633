"""Made workloads: the same from the same seed, and of the shape that their names promise."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.simulate import simulate
from dynamo_sdk.simulate.workloads import GENERATORS, parse_generator

from .fleets import fleet

SMALL = {
    "shared-prompts": "requests=200,num_prompts=8",
    "chats": "sessions=30",
    "agents": "sessions=10",
    "unique": "requests=100",
}


def made(name: str, more: str = "", seed: int = 1):  # type: ignore[no-untyped-def]
    return parse_generator(f"{name},{SMALL[name]}{more}").make(seed=seed, block_tokens=64)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_makes_one_workload(name: str) -> None:
    assert made(name) == made(name)
    assert made(name) != made(name, seed=2)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_workload_can_be_served(name: str) -> None:
    workload = made(name)
    assert workload.name == name
    timed = [arrival for arrival in workload.arrivals if not arrival.is_relative]
    assert [a.at_s for a in timed] == sorted(a.at_s for a in timed)
    for arrival in workload.arrivals:
        assert len(arrival.hash_ids) * 64 >= arrival.num_input_tokens > (len(arrival.hash_ids) - 1) * 64
    outcome = simulate(workload, fleet())
    assert all(found.error is None for found in outcome.requests)


def test_some_prompts_are_asked_for_more_often() -> None:
    workload = made("shared-prompts", ",prompt_tokens=128,zipf=1.5")
    counts = Counter(arrival.hash_ids[:2] for arrival in workload.arrivals)
    most, *others = [count for _, count in counts.most_common()]
    assert len(counts) == 8
    assert most > 3 * others[2]


def test_chats_send_all_that_was_said() -> None:
    workload = made("chats")
    turns = [arrival for arrival in workload.arrivals if arrival.session == "chat-3"]
    assert [turn.is_relative for turn in turns] == [False] + [True] * (len(turns) - 1)
    for before, after in pairwise(turns):
        assert after.num_input_tokens > before.num_input_tokens + before.num_output_tokens
        assert after.hash_ids[: len(before.hash_ids)] == before.hash_ids
    shared = {arrival.hash_ids[:8] for arrival in workload.arrivals}
    assert len(shared) == 1, "the system prompt is everybody's"


def test_tools_are_quick_or_take_very_long() -> None:
    pauses = [a.at_s for a in made("agents", ",long_pause_share=0.2").arrivals if a.is_relative]
    assert sum(pause > 30 for pause in pauses) > len(pauses) / 20
    assert sum(pause < 5 for pause in pauses) > len(pauses) / 2
    assert max(a.at_s for a in made("agents", ",long_pause_share=0").arrivals if a.is_relative) < 30


def test_unique_prompts_share_nothing() -> None:
    assert made("unique").reusable_share == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", r"no workload 'nope' \(workloads: shared-prompts, chats, agents, unique\)"),
        ("chats,speed=1", r"'speed=1' is no KEY=VALUE of it \(keys: sessions, rate"),
        ("chats,rate", "'rate' is no KEY=VALUE"),
        ("chats,rate=fast", "workload chats: .*rate"),
        ("chats,sessions=0", "workload chats: .*sessions"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_generator(text)
