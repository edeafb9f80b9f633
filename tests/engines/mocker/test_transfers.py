"""Decode legs: the time of a transfer, memory on arrival, cancelling on the way."""

from __future__ import annotations

import pytest

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.types import FinishReason, Role

from .virtual import ask, decode_leg, decode_ms, new_core, prompt, run

KV = {"kv_bytes_per_token": 128_000, "kv_transfer_gb_per_s": 64.0}  # 2 microseconds a token


def test_the_transfer_is_spent_before_the_first_decode_step() -> None:
    life = run(new_core(**KV), [(0.0, decode_leg("a", prompt(1000), 7, 4))])["a"]
    assert life.transfer_ms == pytest.approx(2.0)
    assert life.ttft_ms == pytest.approx(2.0 + decode_ms(1001))
    assert len(life.token_ids) == 3
    assert life.finish_reason is FinishReason.LENGTH


def test_speedup_counts_for_transfers() -> None:
    life = run(new_core(**KV, speedup_ratio=10.0), [(0.0, decode_leg("a", prompt(1000), 7, 2))])["a"]
    assert life.ttft_ms == pytest.approx((2.0 + decode_ms(1001)) / 10)


@pytest.mark.parametrize(
    ("timing", "transfer_ms"), [("full_prompt", 2.0), ("destination_missing", 2.0 - 0.96 * 2)]
)
def test_blocks_that_are_there_already(timing: str, transfer_ms: float) -> None:
    arrivals = [(0.0, ask("a", prompt(1000))), (100.0, decode_leg("b", prompt(1000), 7, 3))]
    life = run(new_core(**KV, kv_transfer_timing=timing), arrivals)["b"]
    assert life.transfer_ms == pytest.approx(transfer_ms)
    assert life.num_cached_tokens == 960


def test_what_arrived_is_in_the_prefix_cache() -> None:
    core = new_core(**KV)
    arrivals = [(0.0, decode_leg("a", prompt(1000), 7, 3)), (100.0, ask("b", prompt(1000)))]
    assert run(core, arrivals)["b"].num_cached_tokens == 960
    core.check_integrity()


def test_others_decode_while_it_travels() -> None:
    arrivals = [(0.0, ask("a", prompt(100), 40)), (20.0, decode_leg("b", prompt(40_000, first=1), 7, 2))]
    core = new_core(**KV)
    lives = run(core, arrivals)
    during = [moment for moment in lives["a"].token_ms if 20.0 < moment < 100.0]
    assert len(during) > 10
    assert max(lives["a"].gaps_ms) < 10.0
    assert lives["b"].token_ms[0] > 100.0


def test_two_legs_give_the_tokens_of_one() -> None:
    whole = run(new_core(), [(0.0, ask("a", prompt(300), 9))])["a"]
    first = run(new_core(), [(0.0, ask("a", prompt(300), 9, role=Role.PREFILL))])["a"]
    rest = run(new_core(), [(0.0, decode_leg("a", prompt(300), first.token_ids[0], 9))])["a"]
    assert first.token_ids + rest.token_ids == whole.token_ids


def test_without_a_ticket_the_prompt_is_computed() -> None:
    request = ask("a", prompt(1000), 3, role=Role.DECODE)
    life = run(new_core(**KV), [(0.0, request)])["a"]
    assert life.transfer_ms == 0.0
    assert life.ttft_ms > 30.0


def test_transfers_wait_for_memory_in_order() -> None:
    core = new_core(num_blocks=18, **KV)
    arrivals = [(0.0, decode_leg(f"r{number}", prompt(600, first=number), 7, 60)) for number in range(4)]
    arrivals.append((1.0, decode_leg("small", prompt(10, first=9), 7, 60)))
    lives = run(core, arrivals)
    assert [len(life.token_ids) for life in lives.values()] == [59] * 5
    firsts = [life.token_ms[0] for life in lives.values()]
    assert firsts[:4] == sorted(firsts[:4])
    assert firsts[4] > firsts[2]  # a small one does not overtake
    assert firsts[1] > lives["r0"].token_ms[-1]
    core.check_integrity()


def test_load_counts_what_is_on_its_way_as_waiting() -> None:
    core = new_core(num_blocks=20, **KV)
    core.add(decode_leg("a", prompt(600), 7, 5), 0.0)
    core.add(decode_leg("b", prompt(700, first=1), 7, 5), 0.0)
    load = core.load(0.0)
    assert (load.num_waiting, load.num_running, load.num_free_blocks) == (2, 0, 10)
    assert core.step(0.0) is None
    assert core.next_transfer_s == pytest.approx(600 * 2e-6)


@pytest.mark.parametrize("victim", ["moving", "waiting"])
def test_cancelling_on_the_way(victim: str) -> None:
    core = new_core(num_blocks=20, **KV)
    core.add(decode_leg("moving", prompt(600), 7, 5), 0.0)
    core.add(decode_leg("waiting", prompt(700, first=1), 7, 5), 0.0)
    assert core.abort(victim)
    assert not core.abort(victim)
    core.check_integrity()
    assert core.step(0.01) is None or victim == "waiting"
    core.check_integrity()
    for name in ("moving", "waiting"):
        core.abort(name)
    assert core.load(0.0).num_free_blocks == 20
    assert not core.has_requests
    assert core.next_transfer_s is None


def test_a_cancelled_id_can_travel_again() -> None:
    core = new_core(**KV)
    core.add(decode_leg("a", prompt(600), 7, 5), 0.0)
    core.abort("a")
    life = run(core, [(1.0, decode_leg("a", prompt(600), 7, 5))])["a"]
    assert life.ttft_ms == pytest.approx(1.2 + decode_ms(601))


def test_ids_are_unique_on_the_way_too() -> None:
    core = new_core(num_blocks=20, **KV)
    core.add(decode_leg("a", prompt(600), 7, 5), 0.0)
    core.add(decode_leg("b", prompt(700), 7, 5), 0.0)
    for request in (ask("a", prompt(5)), ask("b", prompt(5)), decode_leg("a", prompt(5), 7, 5)):
        with pytest.raises(InvalidRequest, match="already in use"):
            core.add(request, 0.0)
    core.add(ask("c", prompt(5)), 0.0)
    with pytest.raises(InvalidRequest, match="already in use"):
        core.add(decode_leg("c", prompt(5), 7, 5), 0.0)


def test_one_that_can_never_fit_is_refused_at_once_also_behind_others() -> None:
    core = new_core(num_blocks=20, **KV)
    core.add(decode_leg("a", prompt(600), 7, 5), 0.0)
    core.add(decode_leg("b", prompt(700, first=1), 7, 5), 0.0)
    with pytest.raises(InvalidRequest, match="maximum context length is 1280"):
        core.add(decode_leg("c", prompt(1280), 7, 5), 0.0)
    core.check_integrity()
