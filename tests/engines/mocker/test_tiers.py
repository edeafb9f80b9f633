"""One rank with tiers in virtual time: what comes down, what goes up, and when it does not pay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_sdk.engines.mocker import (
    MockerConfig,
    MockerCore,
    StepResult,
    StepWork,
    TimingModel,
    build_cores,
)
from dynamo_sdk.engines.mocker.channels import Channels
from dynamo_sdk.engines.mocker.tier_config import planned_tiers
from dynamo_sdk.engines.mocker.tiers import SimTiers
from dynamo_sdk.errors import EngineStartError
from dynamo_sdk.kv import OnboardingReason
from dynamo_sdk.types import BlocksRemoved, BlocksStored, GenerateRequest, KVEventBatch, KVTier, Role
from dynamo_sdk.types.plan import KVTierPlan

from .virtual import Life, ask, new_core, prefill_ms, prompt, run

BLOCK_BYTES = 64 * 131_072
RAM = {"kind": "ram", "capacity": 64 * BLOCK_BYTES}
"""Twice the blocks of the device; a block takes 0.34 ms to load, and 0.97 ms to compute."""
DISK = {"kind": "disk", "capacity": 128 * BLOCK_BYTES, "min_uses": 0}


def tiered(*tiers: dict[str, object], ram: dict[str, float] | None = None, **settings: object) -> MockerCore:
    """``ram``: its speed."""
    return new_core(
        **({"num_blocks": 30, "tiers": tiers or (RAM,), "tier_speeds": {"ram": ram or {}}} | settings)
    )


def tiers_of(core: MockerCore) -> SimTiers:
    assert core.tiers is not None
    return core.tiers


def arrivals(*prompts: tuple[float, str, int]) -> list[tuple[float, GenerateRequest]]:
    """(seconds, request id, number of the prompt): a thousand tokens each, of which 15 blocks are full."""
    return [(at_s * 1e3, ask(name, prompt(1000, first=first))) for at_s, name, first in prompts]


def settle(core: MockerCore) -> list[KVEventBatch]:
    """Until nothing moves any more; what was said meanwhile."""
    batches: list[KVEventBatch] = []
    while (at_s := core.next_transfer_s) is not None:
        assert core.step(at_s) is None
        if (batch := core.take_kv_events()) is not None:
            batches.append(batch)
    return batches


PUSHED_OUT = ((0.0, "a", 1), (10.0, "b", 2), (20.0, "c", 3), (30.0, "a again", 1))
"""The first prompt has left the device when it comes again."""


def test_what_left_the_device_is_loaded_instead_of_computed() -> None:
    core = tiered()
    lives = run(core, arrivals(*PUSHED_OUT, (40.0, "b again", 2)))
    # Nothing is known of the tier at first: some blocks are loaded to measure it, and the prompt is computed.
    assert lives["a again"].num_cached_tokens == 0
    assert lives["b again"].num_cached_tokens == 960
    load_ms = 0.02 + 15 * BLOCK_BYTES / 25e9 * 1e3
    assert lives["b again"].ttft_ms == pytest.approx(load_ms + prefill_ms(40))
    assert tiers_of(core).decisions == {
        OnboardingReason.NOTHING: 3,
        OnboardingReason.UNMEASURED: 1,
        OnboardingReason.LOAD: 1,
    }
    core.check_integrity()


def test_a_tier_that_is_slower_than_computing_is_left_alone() -> None:
    again = [*PUSHED_OUT, *[(40.0 + 10 * at, f"r{at}", (at + 1) % 3 + 1) for at in range(6)]]
    slow, plain = tiered(ram={"read_gb_per_s": 1.0}), new_core(num_blocks=30)
    lives, as_without = run(slow, arrivals(*again)), run(plain, arrivals(*again))
    assert [life.ttft_ms for life in lives.values()] == [life.ttft_ms for life in as_without.values()]
    assert tiers_of(slow).decisions[OnboardingReason.RECOMPUTE] == 6
    assert tiers_of(slow).tiers[0].num_read_blocks == 1 + 15, "the probes"


def test_whatever_is_there_is_loaded_on_request() -> None:
    slow = {"read_gb_per_s": 1.0}
    core = tiered(ram=slow, kv_onboarding="always")
    lives = run(core, arrivals(*PUSHED_OUT))
    assert lives["a again"].num_cached_tokens == 960
    load_ms = 0.02 + 15 * BLOCK_BYTES / 1e9 * 1e3
    assert lives["a again"].ttft_ms == pytest.approx(load_ms + prefill_ms(40))


@pytest.mark.parametrize("num_others", [0, 1])
def test_a_tier_slower_than_computing_helps_while_others_wait(num_others: int) -> None:
    """A block takes 2.1 ms to load; computing one was measured to take 2, with its share of a step."""
    core = tiered(ram={"read_gb_per_s": 4.0}, num_blocks=34)
    run(core, arrivals(*PUSHED_OUT))
    others = [(40_000.0, ask(f"r{number}", prompt(100, first=9 + number))) for number in range(num_others)]
    lives = run(core, [*arrivals((40.0, "b again", 2)), *others])
    assert (lives["b again"].num_cached_tokens == 960) == bool(num_others)
    assert tiers_of(core).decisions[OnboardingReason.LOAD] == num_others


def test_others_go_on_while_one_loads() -> None:
    core = tiered(ram={"latency_ms": 5.0}, num_blocks=34)
    run(core, arrivals(*PUSHED_OUT))
    both = [*arrivals((40.0, "b again", 2)), (40_001.0, ask("new", prompt(100, first=9)))]
    lives = run(core, both)
    assert lives["new"].ttft_ms == pytest.approx(prefill_ms(100)), "it does not wait for the other's blocks"
    assert lives["b again"].num_cached_tokens == 960


def test_a_load_begins_when_its_request_comes_also_within_a_step() -> None:
    core = tiered(ram={"latency_ms": 5.0}, num_blocks=34)
    run(core, arrivals(*PUSHED_OUT))
    lives = run(core, [(40_000.0, ask("new", prompt(100, first=9))), *arrivals((40.001, "b again", 2))])
    load_ms = 5.0 + 15 * BLOCK_BYTES / 25e9 * 1e3
    assert 1 + load_ms < prefill_ms(100), "it is over before the step is"
    assert lives["b again"].num_cached_tokens == 960
    assert lives["b again"].ttft_ms == pytest.approx(prefill_ms(100) - 1 + prefill_ms(40))


def test_loads_take_turns() -> None:
    channels = Channels(1, latency_s=1.0, bytes_per_s=10.0)
    assert channels.send(20, 5.0) == pytest.approx(8.0)
    assert channels.start_s(6.0) == pytest.approx(8.0)
    assert channels.send(10, 6.0) == pytest.approx(10.0)
    assert channels.start_s(20.0) == 20.0


def test_several_channels_move_at_once() -> None:
    channels = Channels(2, latency_s=0.0, bytes_per_s=10.0)
    assert [channels.send(10, 0.0) for _ in range(4)] == pytest.approx([1.0, 1.0, 2.0, 2.0])


def test_a_block_that_left_the_device_before_its_turn_is_not_kept() -> None:
    """One block of the first prompt is copied while the other prompts take their blocks."""
    core = tiered(ram={"write_gb_per_s": 1e-3})
    run(core, arrivals(*PUSHED_OUT))
    settle(core)
    (ram,) = tiers_of(core).tiers
    assert ram.num_offers == 60
    assert 0 < ram.num_blocks < 30
    held_now = held([core.kv_snapshot()[1]], is_snapshot=True)
    assert held_now[KVTier.HOST] < held_now[KVTier.DEVICE], "each was there from the first to the last byte"
    core.check_integrity()


def test_rare_blocks_are_not_written_to_what_wears_out() -> None:
    core = tiered(RAM, DISK | {"min_uses": 2})
    run(core, arrivals((0.0, "a", 1), (10.0, "b", 2)))
    settle(core)
    ram, disk = tiers_of(core).tiers
    assert (ram.num_blocks, disk.num_blocks) == (30, 0)
    assert disk.queue.num_refused["rare"] == 30
    run(core, arrivals((20.0, "a again", 1)))
    settle(core)
    assert disk.num_blocks == 15


def test_what_no_request_of_importance_computed_stays_above() -> None:
    core = tiered(RAM, DISK | {"min_priority": 1})
    run(core, [(0.0, ask("a", prompt(1000))), (1000.0, ask("b", prompt(1000, first=1), priority=-1))])
    settle(core)
    ram, disk = tiers_of(core).tiers
    assert (ram.num_blocks, disk.num_blocks) == (30, 15)


def test_a_lower_tier_has_what_the_one_above_gave_up() -> None:
    core = tiered(RAM | {"capacity": 32 * BLOCK_BYTES}, DISK, tier_speeds={"disk": {"read_gb_per_s": 20.0}})
    run(core, arrivals(*[(10.0 * number, f"r{number}", number) for number in range(6)]))
    settle(core)
    ram, disk = tiers_of(core).tiers
    assert (ram.num_blocks, disk.num_blocks) == (32, 90)
    lives = run(core, arrivals((100.0, "measured", 0), (110.0, "again", 1)))
    assert lives["again"].num_cached_tokens == 960
    assert disk.counts.num_onboarded_blocks == 15
    assert disk.counts.num_hit_blocks == 30


class Slow(TimingModel):
    """A millisecond a token: every load is worth it."""

    def prefill_s(self, work: StepWork) -> float:
        return 1e-3 * work.num_prefill_tokens

    def decode_s(self, work: StepWork) -> float:
        return 0.1


SLOW = {"timing": f"{__name__}:Slow"}


def test_an_aborted_load_holds_nothing_and_its_id_is_free() -> None:
    core = tiered(ram={"latency_ms": 100.0}, **SLOW)
    run(core, arrivals(*PUSHED_OUT))
    core.add(ask("x", prompt(1000, first=2)), 40.0)
    assert core.step(40.0) is None
    assert core.next_transfer_s == pytest.approx(40.1, abs=0.01)
    assert core.load(40.0).num_waiting == 1
    assert core.abort("x")
    assert core.load(40.0).num_free_blocks == 30
    assert not core.has_requests
    life = run(core, [(40_050.0, ask("x", prompt(500, first=7)))])["x"]
    assert life.num_cached_tokens == 0
    assert life.ttft_ms == pytest.approx(500)
    core.check_integrity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tiers": [{"kind": "ram", "capacity": "8MiB"}]},
            "'ram' of 8388608 bytes is smaller than the device",
        ),
        ({"tiers": [RAM, {"kind": "disk", "capacity": "16MiB"}]}, "smaller than tier 'ram' above it"),
        ({"tiers": [RAM, RAM]}, "names of their own, not ram, ram"),
        ({"kv_bytes_per_token": 0}, "kv_bytes_per_token is 0"),
        ({"tiers": [{"kind": "tape"}]}, "how fast is tier 'tape'.*needs latency_ms, read_gb_per_s, write_gb"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        tiered(**settings)


def test_the_ranks_share_the_capacity() -> None:
    first, second = build_cores(".", MockerConfig(num_blocks=30, dp_size=2, tiers=[RAM]))  # type: ignore[list-item]
    assert [tiers_of(core).tiers[0].model.num_blocks for core in (first, second)] == [32, 32]


# -- events


def held(batches: list[KVEventBatch], *, is_snapshot: bool = False) -> dict[KVTier, set[object]]:
    """What a listener knows, who takes nothing that it cannot place."""
    known: dict[KVTier, set[object]] = {tier: set() for tier in KVTier}
    for number, batch in enumerate(batches):
        assert is_snapshot or batch.sequence == number
        for event in batch.events:
            if isinstance(event, BlocksStored):
                anywhere = set().union(*known.values())
                assert event.parent_hash is None or event.parent_hash in anywhere
                assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                if event.tier is not KVTier.DEVICE and not is_snapshot:
                    assert set(event.block_hashes) <= anywhere, "KV is computed on the device only"
                known[event.tier].update(event.block_hashes)
            elif isinstance(event, BlocksRemoved):
                assert set(event.block_hashes) <= known[event.tier]
                known[event.tier].difference_update(event.block_hashes)
    return known


def test_events_say_which_tier_has_what() -> None:
    core = tiered(RAM | {"capacity": 40 * BLOCK_BYTES, "eviction": "leaf-first"})
    steps: list[StepResult] = []
    run(core, arrivals(*PUSHED_OUT, (40.0, "d", 4)), steps=steps)
    known = held([*[step.events for step in steps if step.events is not None], *settle(core)])
    assert len(known[KVTier.HOST]) == tiers_of(core).tiers[0].num_blocks == 40
    assert held([core.kv_snapshot()[1]], is_snapshot=True) == known


requests = st.lists(
    st.tuples(st.floats(0, 1), st.lists(st.integers(0, 1), min_size=1, max_size=16), st.integers(1, 8)),
    min_size=1,
    max_size=14,
)


@given(
    requests,
    st.integers(14, 30),
    st.sampled_from([0, 2]),
    st.sampled_from(["lru", "lfu", "leaf-first"]),
    st.sampled_from([1e3, 1e-3, 1e-5]),
)
@settings(max_examples=80)
def test_whatever_comes_everybody_is_served_and_events_tell_the_truth(
    workload: list[tuple[float, list[int], int]],
    num_blocks: int,
    min_uses: int,
    eviction: str,
    gb_per_s: float,
) -> None:
    tiers = [
        {"kind": "ram", "capacity": num_blocks * 2000, "eviction": eviction},
        {"kind": "disk", "capacity": num_blocks * 4000, "eviction": eviction, "min_uses": min_uses},
    ]
    speed = {"latency_ms": 0.1, "read_gb_per_s": gb_per_s, "write_gb_per_s": gb_per_s}
    core = new_core(
        block_size=2,
        num_blocks=num_blocks,
        kv_bytes_per_token=1000,
        tiers=tiers,
        tier_speeds={"ram": speed, "disk": speed},
    )
    asked = [
        (at_s * 1e3, ask(f"r{number}", tokens, max_tokens, role=Role.AGGREGATED))
        for number, (at_s, tokens, max_tokens) in enumerate(sorted(workload, key=lambda row: row[0]))
    ]
    steps: list[StepResult] = []
    lives: dict[str, Life] = run(core, asked, steps=steps)
    assert [len(life.token_ids) for life in lives.values()] == [req.sampling.max_tokens for _, req in asked]
    held([*[step.events for step in steps if step.events is not None], *settle(core)])
    core.check_integrity()
    assert core.load(0.0).num_free_blocks == num_blocks


def test_what_other_workers_hold_is_left_out() -> None:
    plans = [KVTierPlan(name="ram", kind="ram", capacity_bytes=1), KVTierPlan(name="shared", kind="shared")]
    assert [tier.kind for tier in planned_tiers(plans)] == ["ram"]


def test_speeds_of_tiers_that_are_not_there_are_refused() -> None:
    with pytest.raises(EngineStartError, match=r"tier_speeds names no tier: rma \(tiers: ram\)"):
        new_core(
            num_blocks=30, kv_bytes_per_token=1000, tiers=[RAM], tier_speeds={"rma": {"latency_ms": 1.0}}
        )
