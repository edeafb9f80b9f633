"""The default formula: its values, and that a core makes of them what the reference simulator does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.engines.mocker import PolynomialTiming, StepWork

from .virtual import ask, decode_ms, new_core, prefill_ms, prompt, run


def work(
    *, prefill: tuple[int, int] = (0, 0), decode: tuple[int, int] = (0, 0), capacity: int = 2**20
) -> StepWork:
    return StepWork(
        num_prefill_requests=prefill[0],
        num_prefill_tokens=prefill[1],
        num_decode_requests=decode[0],
        num_decode_kv_tokens=decode[1],
        num_capacity_tokens=capacity,
    )


@pytest.mark.parametrize(
    ("num_tokens", "ms"), [(1, 16.51660386), (512, 24.3857036156416), (8192, 169.1369184042496)]
)
def test_prefill_values(num_tokens: int, ms: float) -> None:
    assert PolynomialTiming().step_s(work(prefill=(1, num_tokens))) * 1e3 == pytest.approx(ms, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "ms"), [(0.0, 5.74), (0.25, 17.63375), (0.5, 26.31), (1.0, 34.01), (1.5, 34.01)]
)
def test_decode_values(share: float, ms: float) -> None:
    step_s = PolynomialTiming().step_s(work(decode=(1, int(share * 2**20)), capacity=2**20))
    assert step_s * 1e3 == pytest.approx(ms, rel=1e-12)


def test_an_empty_step_takes_no_time() -> None:
    assert PolynomialTiming().step_s(work()) == 0.0


@given(st.integers(1, 10**6), st.integers(1, 2**21))
def test_a_mixed_step_takes_the_sum(num_prefill: int, num_decode: int) -> None:
    timing = PolynomialTiming()
    both = timing.step_s(work(prefill=(2, num_prefill), decode=(3, num_decode)))
    apart = timing.step_s(work(prefill=(2, num_prefill))) + timing.step_s(work(decode=(3, num_decode)))
    assert both == apart


@pytest.mark.parametrize("num_tokens", [1, 64, 512, 4096, 8192])
def test_one_request_takes_what_the_formula_says(num_tokens: int) -> None:
    life = run(new_core(), [(0.0, ask("a", prompt(num_tokens), 4))])["a"]
    assert life.ttft_ms == pytest.approx(prefill_ms(num_tokens), abs=1e-9)
    assert life.gaps_ms == pytest.approx([decode_ms(num_tokens + done) for done in (1, 2, 3)], abs=1e-9)


# What follows was measured on the offline replay of ai-dynamo 1.6.1 (one worker, blocks of 64 tokens), in
# milliseconds, which that rounds to a nanosecond.


def test_reference_two_prompts_at_once_count_together() -> None:
    lives = run(new_core(), [(0.0, ask("a", prompt(512))), (0.0, ask("b", prompt(512, first=1)))])
    assert [life.ttft_ms for life in lives.values()] == pytest.approx([32.490712, 32.490712], abs=1e-6)


def test_reference_a_prompt_among_decodes() -> None:
    arrivals = [(0.0, ask("a", prompt(512), 4)), (30.0, ask("b", prompt(512, first=1), 2))]
    lives = run(new_core(), arrivals)
    assert lives["a"].token_ms == pytest.approx([24.385704, 30.152121, 60.304294, 66.097219], abs=1e-5)
    assert lives["b"].token_ms == pytest.approx([60.304294, 66.097219], abs=1e-5)


def test_reference_a_prompt_in_chunks() -> None:
    life = run(new_core(), [(0.0, ask("a", prompt(16384), 2))])["a"]
    assert life.token_ms == pytest.approx([338.273836, 344.851509], abs=1e-5)


def test_reference_a_chunk_and_a_whole_prompt() -> None:
    lives = run(new_core(), [(0.0, ask("a", prompt(10_000), 2)), (0.0, ask("b", prompt(512, first=1), 2))])
    for life in lives.values():
        assert life.token_ms == pytest.approx([223.129903, 229.40887], abs=1e-5)


def test_reference_speedup() -> None:
    life = run(new_core(speedup_ratio=2.0), [(0.0, ask("a", prompt(512), 2))])["a"]
    assert life.token_ms == pytest.approx([12.192852, 15.076061], abs=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "num_cached", "ttft_ms"), [(1024, 960, 17.474885), (1536, 1024, 24.385704)]
)
def test_reference_a_prefix_hit(num_tokens: int, num_cached: int, ttft_ms: float) -> None:
    """Of a prompt that is cached whole, the last block is computed again: it says the next token."""
    arrivals = [(0.0, ask("a", prompt(1024))), (1000.0, ask("b", prompt(num_tokens)))]
    life = run(new_core(), arrivals)["b"]
    assert life.num_cached_tokens == num_cached
    assert life.ttft_ms == pytest.approx(ttft_ms, abs=1e-5)
