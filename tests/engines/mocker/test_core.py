"""One rank in virtual time: cache, memory, cancelling, events, metrics."""

from __future__ import annotations

import pytest

from dynamo_sdk.engines.mocker import MockerCore, StepResult, StepWork, TimingModel
from dynamo_sdk.errors import EngineStartError, InvalidRequest
from dynamo_sdk.types import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    FinishReason,
    KVEventBatch,
    Role,
    unpack_tokens,
)

from .virtual import ask, decode_ms, new_core, prefill_ms, prompt, run


def cached_blocks(batches: list[KVEventBatch]) -> dict[object, tuple[object, tuple[int, ...]]]:
    """What a listener knows: hash -> (parent's hash, tokens)."""
    known: dict[object, tuple[object, tuple[int, ...]]] = {}
    for number, batch in enumerate(batches):
        assert batch.sequence == number
        for event in batch.events:
            match event:
                case BlocksStored():
                    parent = event.parent_hash
                    for index, block_hash in enumerate(event.block_hashes):
                        assert parent is None or parent in known
                        start = index * event.block_size
                        known[block_hash] = (parent, event.token_ids[start : start + event.block_size])
                        parent = block_hash
                case BlocksRemoved():
                    for block_hash in event.block_hashes:
                        del known[block_hash]
                case BlocksCleared():
                    known.clear()
    return known


def snapshot_blocks(core: MockerCore) -> dict[object, tuple[object, tuple[int, ...]]]:
    _, snapshot = core.kv_snapshot()
    return cached_blocks([KVEventBatch(sequence=0, dp_rank=snapshot.dp_rank, events=snapshot.events)])


def test_of_two_equal_prompts_at_once_the_second_waits_and_hits() -> None:
    core = new_core()
    lives = run(core, [(0.0, ask("a", prompt(512))), (0.0, ask("b", prompt(512)))])
    assert lives["a"].ttft_ms == pytest.approx(prefill_ms(512))
    assert lives["b"].num_cached_tokens == 448
    assert lives["b"].ttft_ms == pytest.approx(prefill_ms(512) + prefill_ms(64))


def test_without_a_prefix_cache_nothing_is_found_and_nothing_said() -> None:
    steps: list[StepResult] = []
    arrivals = [(0.0, ask("a", prompt(512))), (100.0, ask("b", prompt(512)))]
    lives = run(new_core(enable_prefix_caching=False), arrivals, steps=steps)
    assert lives["b"].num_cached_tokens == 0
    assert all(step.events is None for step in steps)


def test_tenants_share_nothing() -> None:
    arrivals = [
        (0.0, ask("a", prompt(512), cache_salt="one")),
        (100.0, ask("b", prompt(512), cache_salt="two")),
        (200.0, ask("c", prompt(512), cache_salt="one")),
    ]
    lives = run(new_core(), arrivals)
    assert [life.num_cached_tokens for life in lives.values()] == [0, 0, 448]


def test_a_request_that_lacks_memory_is_preempted_and_still_ends() -> None:
    """Of two requests that do not fit together the later one starts again; the reference simulator gives
    the first one the same times (5954.697 ms to its end)."""
    core = new_core(num_blocks=18)
    steps: list[StepResult] = []
    lives = run(
        core, [(0.0, ask("a", prompt(512), 200)), (0.0, ask("b", prompt(512, first=1), 200))], steps=steps
    )
    assert sum(step.metrics.num_preempted for step in steps) == 1
    assert [len(life.token_ids) for life in lives.values()] == [200, 200]
    assert lives["a"].token_ms[-1] == pytest.approx(5954.697072, abs=1e-4)
    assert lives["b"].token_ms[-1] > lives["a"].token_ms[-1]
    assert lives["b"].num_cached_tokens == 0  # what it found of itself later is no news to a client
    assert sum(len(step.admitted) for step in steps) == 2
    core.check_integrity()


def test_prompts_longer_than_a_step_are_prefilled_in_chunks() -> None:
    steps: list[StepResult] = []
    run(new_core(max_num_batched_tokens=256), [(0.0, ask("a", prompt(600)))], steps=steps)
    assert [step.metrics.num_prefill_tokens for step in steps] == [256, 256, 88]
    assert [len(step.updates) for step in steps] == [0, 0, 1]


def test_no_more_than_max_num_seqs_run_at_once() -> None:
    steps: list[StepResult] = []
    arrivals = [(0.0, ask(f"r{number}", prompt(64, first=number), 5)) for number in range(9)]
    run(new_core(max_num_seqs=4), arrivals, steps=steps)
    assert max(step.metrics.num_prefill_requests + step.metrics.num_decode_requests for step in steps) == 4


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_aborted_request_holds_nothing_and_says_nothing(num_steps: int) -> None:
    core = new_core(num_blocks=20)
    core.add(ask("a", prompt(600), 50), 0.0)
    for _ in range(num_steps):
        core.step(0.0)
    assert core.abort("a")
    assert not core.abort("a")
    load = core.load(0.0)
    assert (load.num_running, load.num_waiting, load.num_free_blocks) == (0, 0, 20)
    assert core.step(0.0) is None
    core.check_integrity()


def test_events_rebuild_what_the_pool_holds() -> None:
    core = new_core(num_blocks=40)
    steps: list[StepResult] = []
    shared = prompt(300)
    arrivals = [(10.0 * number, ask(f"r{number}", [*shared, number], 90)) for number in range(8)]
    arrivals += [(900.0 + number, ask(f"s{number}", prompt(1500, first=number), 3)) for number in range(5)]
    run(core, arrivals, steps=steps)
    batches = [step.events for step in steps if step.events is not None]
    known = cached_blocks(batches)
    assert known == snapshot_blocks(core)
    assert core.kv_snapshot()[1].sequence == len(batches) - 1
    assert 0 < len(known) <= 40
    assert any(isinstance(event, BlocksRemoved) for batch in batches for event in batch.events)


def test_events_carry_the_output_too() -> None:
    core = new_core(block_size=4, num_blocks=50)
    life = run(core, [(0.0, ask("a", prompt(8), 9))])["a"]
    tokens = [block[1] for block in snapshot_blocks(core).values()]
    assert [token for block in tokens for token in block] == [*prompt(8), *life.token_ids[:8]]


def test_metrics_describe_the_step() -> None:
    steps: list[StepResult] = []
    arrivals = [(0.0, ask("a", prompt(512), 3)), (25.0, ask("b", prompt(100, first=1), 2))]
    run(new_core(num_blocks=100), arrivals, steps=steps)
    first, second, third, _ = (step.metrics for step in steps)
    assert (first.num_prefill_requests, first.num_prefill_tokens, first.num_decode_requests) == (1, 512, 0)
    assert (second.num_decode_requests, second.num_decode_kv_tokens) == (1, 513)
    assert (third.num_prefill_tokens, third.num_decode_kv_tokens) == (100, 514)
    assert [step.metrics.step for step in steps] == [1, 2, 3, 4]
    for step in steps:
        assert step.metrics.wall_s == step.duration_s
        assert step.metrics.at_s == pytest.approx(step.started_s + step.duration_s)


def test_a_prefill_leg_gives_one_token_and_its_blocks_back() -> None:
    core = new_core(num_blocks=20)
    life = run(core, [(0.0, ask("a", prompt(512), 9, role=Role.PREFILL))])["a"]
    assert (len(life.token_ids), life.finish_reason) == (1, FinishReason.HANDOVER)
    assert core.load(0.0).num_free_blocks == 20
    assert len(snapshot_blocks(core)) == 8  # and they can still be found
    core.check_integrity()


def test_ids_are_unique_while_they_are_in_use() -> None:
    core = new_core()
    core.add(ask("a", prompt(10)), 0.0)
    with pytest.raises(InvalidRequest, match="'a' is already in use"):
        core.add(ask("a", prompt(10)), 0.0)


class Backwards(TimingModel):
    def __init__(self, *, seconds: float = -1.0) -> None:
        self.seconds = seconds

    def prefill_s(self, work: StepWork) -> float:
        return self.seconds

    def decode_s(self, work: StepWork) -> float:
        return self.seconds


HERE = f"{__name__}:Backwards"


def test_timing_models_are_plugged_in_by_import_string() -> None:
    life = run(new_core(timing=HERE, timing_args={"seconds": 0.25}), [(0.0, ask("a", prompt(10), 3))])["a"]
    assert life.token_ms == [250.0, 500.0, 750.0]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_impossible_durations_are_refused(seconds: float) -> None:
    core = new_core(timing=HERE, timing_args={"seconds": seconds})
    core.add(ask("a", prompt(10)), 0.0)
    with pytest.raises(ValueError, match=r"Backwards gave .* seconds"):
        core.step(0.0)


@pytest.mark.parametrize(
    ("timing", "args", "message"),
    [
        ("no.such:Thing", {}, "timing model needs the module 'no'"),
        (f"{__name__}:Backward", {}, "did you mean 'Backwards'"),
        (HERE, {"minutes": 3}, "unexpected keyword argument 'minutes'"),
        ("builtins:str", {}, "does not make a TimingModel"),
        ("math:pi", {}, "does not make a TimingModel"),
        ("dynamo_sdk.engines.mocker.profile:ProfileTiming", {"path": "gone.csv"}, "gone.csv"),
    ],
)
def test_a_bad_timing_model_is_named(timing: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        new_core(timing=timing, timing_args=args)


def test_block_table_of_a_stored_event_is_consecutive() -> None:
    steps: list[StepResult] = []
    request = ask("a", prompt(256))
    run(new_core(), [(0.0, request)], steps=steps)
    assert steps[0].events is not None
    (stored,) = steps[0].events.events
    assert isinstance(stored, BlocksStored)
    assert list(stored.token_ids) == unpack_tokens(request.prompt)


def test_decode_slows_down_as_the_blocks_fill() -> None:
    arrivals = [(0.0, ask(f"r{number}", prompt(1000, first=number), 3)) for number in range(8)]
    life = run(new_core(num_blocks=256, max_num_batched_tokens=8192), arrivals)["r7"]
    assert life.gaps_ms[0] == pytest.approx(decode_ms(8 * 1001, 256 * 64))


@pytest.mark.parametrize(("enable_growth_reserve", "num_preempted"), [(True, 0), (False, 1)])
def test_a_reserve_for_growth_trades_preemptions_for_first_tokens(
    enable_growth_reserve: bool, num_preempted: int
) -> None:
    """Two prompts fill all blocks; with the reserve the second waits for the first one's end."""
    steps: list[StepResult] = []
    arrivals = [(0.0, ask("a", prompt(500), 40)), (1.0, ask("b", prompt(500, first=1), 40))]
    core = new_core(num_blocks=16, enable_growth_reserve=enable_growth_reserve)
    lives = run(core, arrivals, steps=steps)
    assert sum(step.metrics.num_preempted for step in steps) == num_preempted
    assert (lives["b"].token_ms[0] > lives["a"].token_ms[-1]) == enable_growth_reserve
