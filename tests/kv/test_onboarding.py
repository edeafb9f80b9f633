"""Loading against recomputing: the decision, what it learns from, and sizes that cannot work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import (
    NOBODY,
    EagerPolicy,
    MeasuredTime,
    MeasuredTimeBySize,
    OnboardingPolicy,
    OnboardingReason,
    Others,
    TierRun,
    TierSize,
    check_tier_sizes,
    onboarding_policy,
)
from dynamo_sdk.kv.onboarding import MARGIN, MAX_WEIGHT
from dynamo_sdk.types import BlockLoadTimes, KVTier

BLOCK_SIZE = 16
BLOCK_BYTES = 2 << 20
GIB = 1 << 30


def policy_with(**tiers):
    """``ram=10e9``: bytes per second. Computing: 8,000 tokens per second, measured at 0 s."""
    policy = OnboardingPolicy(block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)
    for tier, bytes_per_s in tiers.items():
        for num_blocks in (1, 50):
            policy.loaded(tier, num_blocks, num_blocks * BLOCK_BYTES / bytes_per_s, 0.0)
    for num_tokens in (100, 7000):
        policy.computed(0, num_tokens, num_tokens / 8000, 0.0)
    return policy


def decide(policy, *runs, num_device_blocks=0, num_prompt_tokens=7201, now_s=1.0, others=NOBODY, wait_s=0.0):
    return policy.decide(
        [TierRun(tier=tier, num_blocks=num_blocks, wait_s=wait_s) for tier, num_blocks in runs],
        num_device_blocks=num_device_blocks,
        num_prompt_tokens=num_prompt_tokens,
        now_s=now_s,
        others=others,
    )


def test_forty_seconds_of_loading_lose_against_computing_for_less_than_one():
    """450 blocks from a disk that gives 23 MB/s: 40 s, next to 0.9 s. Users waited for the 40."""
    policy = policy_with(disk=450 * BLOCK_BYTES / 40)
    decision = decide(policy, ("disk", 450))
    assert decision.num_blocks == 0
    assert decision.reason is OnboardingReason.RECOMPUTE
    assert decision.load_s == pytest.approx(40, rel=0.01)
    assert decision.recompute_s == pytest.approx(0.9, rel=0.01)


def test_no_request_waits_for_the_discovery_that_a_disk_is_slow():
    policy = policy_with(ram=10e9)
    decision = decide(policy, ("disk", 450))
    assert (decision.num_blocks, decision.probe) == (0, ("disk",))
    assert decision.reason is OnboardingReason.UNMEASURED
    policy.loaded("disk", 1, 40 / 450, 1.0)  # the probe, beside the request
    decision = decide(policy, ("disk", 450))
    assert decision.reason is OnboardingReason.RECOMPUTE
    assert decision.probe == ()


def test_a_fast_disk_is_used():
    decision = decide(policy_with(disk=3e9), ("disk", 450))
    assert decision.num_blocks == 450
    assert decision.load_s < decision.recompute_s


def test_a_disk_that_became_slow_is_left_and_found_again():
    policy = policy_with(disk=3e9)
    for _ in range(5):
        policy.loaded("disk", 1, BLOCK_BYTES / 1e6, 10.0)  # 1 MB/s
    assert decide(policy, ("disk", 450), now_s=10.0).num_blocks == 0
    policy.computed(0, 7000, 7 / 8, 400.0)
    later = decide(policy, ("disk", 450), now_s=400.0)
    assert (later.num_blocks, later.probe) == (0, ("disk",))
    policy.loaded("disk", 1, BLOCK_BYTES / 3e9, 400.0)
    assert decide(policy, ("disk", 450), now_s=400.0).num_blocks == 450


def test_loading_ends_where_the_slow_tier_begins():
    decision = decide(policy_with(ram=10e9, disk=20e6), ("ram", 100), ("disk", 300))
    assert decision.num_blocks == 100
    assert decision.probe == ()


def test_a_slow_run_is_worth_it_when_much_lies_behind():
    policy = policy_with(ram=10e9, disk=20e6)
    assert decide(policy, ("disk", 2), ("ram", 440)).num_blocks == 442
    assert decide(policy, ("disk", 2), ("ram", 1)).num_blocks == 0


def test_what_lies_behind_an_unknown_tier_is_not_loaded():
    policy = policy_with(ram=10e9)
    decision = decide(policy, ("ram", 10), ("peer", 5), ("ram", 100))
    assert (decision.num_blocks, decision.probe) == (10, ("peer",))


def test_the_length_of_the_prefix_decides():
    """A tier with 50 ms before the first byte: 2 blocks are computed faster, 400 are loaded faster."""
    policy = policy_with()
    for num_blocks in (1, 400):
        policy.loaded("s3", num_blocks, 0.05 + num_blocks * BLOCK_BYTES / 5e9, 0.0)
    assert decide(policy, ("s3", 2), num_prompt_tokens=40).num_blocks == 0
    assert decide(policy, ("s3", 400)).num_blocks == 400


def test_computing_gets_dearer_with_the_context():
    """The same 64 blocks, at the start of a short prompt and far into a long one."""
    policy = OnboardingPolicy(block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)
    policy.loaded("disk", 64, 0.1, 0.0)
    policy.computed(0, 1024, 0.05, 0.0)
    policy.computed(60_000, 1024, 0.4, 0.0)
    assert decide(policy, ("disk", 64), num_prompt_tokens=1025).num_blocks == 0
    far = decide(policy, ("disk", 64), num_device_blocks=3750, num_prompt_tokens=61_025)
    assert far.num_blocks == 64


def test_a_queue_in_front_of_the_tier_counts():
    policy = policy_with(disk=3e9)
    run = TierRun(tier="disk", num_blocks=450, wait_s=5.0)
    decision = policy.decide([run], num_device_blocks=0, num_prompt_tokens=7201, now_s=1.0)
    assert decision.num_blocks == 0
    assert decision.load_s > 5


def test_a_close_race_is_computed():
    assert decide(policy_with(disk=450 * BLOCK_BYTES / 0.88), ("disk", 450)).num_blocks == 0
    assert decide(policy_with(disk=450 * BLOCK_BYTES / 0.75), ("disk", 450)).num_blocks == 450


def test_nothing_to_load_and_misuse():
    policy = policy_with(ram=1e9)
    assert decide(policy).reason is OnboardingReason.NOTHING
    assert decide(policy, ("ram", 0)).reason is OnboardingReason.NOTHING
    with pytest.raises(ValueError, match="32 tokens in blocks, but 32"):
        decide(policy, ("ram", 2), num_prompt_tokens=32)


@given(
    runs=st.lists(st.tuples(st.sampled_from(["ram", "disk", "peer"]), st.integers(0, 50)), max_size=5),
    device=st.integers(0, 20),
    rest=st.integers(1, 500),
)
def test_what_is_loaded_never_takes_longer_than_computing(runs, device, rest):
    policy = policy_with(ram=2e9, disk=0.3e9)
    known = (device + sum(count for _, count in runs)) * BLOCK_SIZE
    decision = decide(policy, *runs, num_device_blocks=device, num_prompt_tokens=known + rest)
    ends = [sum(count for _, count in runs[:end]) for end in range(len(runs) + 1)]
    assert decision.num_blocks in ends
    if decision.num_blocks:
        assert decision.load_s < decision.recompute_s
        reached = ends.index(decision.num_blocks)
        assert all(tier != "peer" or not count for tier, count in runs[:reached])


# -- others who want the device

TWICE = 450 * BLOCK_BYTES / 1.8
"""Bytes per second of a tier that takes twice as long as computing 7,200 tokens."""
BUSY = Others(num_waiting=3, num_running=12)


def test_a_tier_that_is_slower_than_computing_is_used_while_others_wait_for_the_device():
    policy = policy_with(disk=TWICE)
    assert decide(policy, ("disk", 450)).num_blocks == 0
    assert decide(policy, ("disk", 450), others=Others(num_waiting=1)).num_blocks == 0, "a close race"
    busy = decide(policy, ("disk", 450), others=Others(num_waiting=2))
    assert busy.num_blocks == 450
    assert busy.load_s > busy.recompute_s
    assert busy.limit_s == pytest.approx(3 * busy.recompute_s), "it is given up where it no longer pays"
    assert decide(policy, ("disk", 450), others=Others(num_running=15)).num_blocks == 450
    assert decide(policy, ("disk", 450), others=Others(num_running=5)).num_blocks == 0


def test_it_is_left_again_when_loads_wait_for_each_other():
    policy = policy_with(disk=TWICE)
    assert decide(policy, ("disk", 450), others=BUSY, wait_s=1.0).num_blocks == 450
    assert decide(policy, ("disk", 450), others=BUSY, wait_s=2.0).num_blocks == 0


def test_whoever_waits_a_disk_of_a_megabyte_per_second_is_left_alone():
    policy = policy_with(ram=10e9, disk=1e6)
    crowd = Others(num_waiting=10_000, num_running=10_000)
    assert decide(policy, ("disk", 450), others=crowd).num_blocks == 0
    assert decide(policy, ("ram", 100), ("disk", 350), others=crowd).num_blocks == 100


def test_others_make_a_load_longer_where_that_saves_computing():
    """RAM first, then what is slower than computing: alone it ends where the RAM ends."""
    policy = policy_with(ram=10e9, disk=TWICE)
    runs = [("ram", 100), ("disk", 350)]
    assert decide(policy, *runs).num_blocks == 100
    assert decide(policy, *runs, others=BUSY).num_blocks == 450


tier_runs = st.lists(st.tuples(st.sampled_from(["ram", "disk", "slow"]), st.integers(0, 60)), max_size=5)
crowds = st.builds(Others, num_waiting=st.integers(0, 8), num_running=st.integers(0, 80))


@given(
    runs=tier_runs,
    rest=st.integers(1, 500),
    others=crowds,
    more=crowds,
    wait_s=st.floats(0, 2),
    rates=st.tuples(*[st.floats(1e6, 1e11)] * 3),
)
def test_others_only_ever_add_to_what_is_loaded_and_never_delay_it_beyond_the_limit(
    runs, rest, others, more, wait_s, rates
):
    policy = policy_with(**dict(zip(("ram", "disk", "slow"), rates, strict=True)))
    num_prompt_tokens = sum(count for _, count in runs) * BLOCK_SIZE + rest
    how = {"num_prompt_tokens": num_prompt_tokens, "wait_s": wait_s}
    alone = decide(policy, *runs, **how)
    busy = decide(policy, *runs, **how, others=others)
    together = Others(
        num_waiting=others.num_waiting + more.num_waiting, num_running=others.num_running + more.num_running
    )
    busier = decide(policy, *runs, **how, others=together)
    assert alone.num_blocks <= busy.num_blocks <= busier.num_blocks
    for decision in (alone, busy, busier):
        if decision.num_blocks:
            assert decision.load_s < MAX_WEIGHT * decision.recompute_s
            assert decision.load_s < decision.limit_s * 1.0001
    if alone.num_blocks:
        assert alone.load_s < alone.recompute_s


@given(others=crowds, factor=st.floats(1.0, 10.0))
def test_how_much_slower_a_tier_may_be(others, factor):
    """All of the prompt but one token in one run: it pays below the weight of the device's time."""
    policy = policy_with(disk=450 * BLOCK_BYTES / (0.9 * factor))
    decision = decide(policy, ("disk", 450), others=others)
    weight = min(1 + others.num_waiting + others.num_running / 10, MAX_WEIGHT)
    if factor < 0.99 * MARGIN * weight:
        assert decision.num_blocks == 450
    if factor > 1.01 * MARGIN * weight:
        assert decision.num_blocks == 0


def test_a_policy_that_loads_whatever_is_there():
    policy = onboarding_policy("always", block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)
    assert isinstance(policy, EagerPolicy)
    decision = decide(policy, ("disk", 400), ("ram", 50))
    assert (decision.num_blocks, decision.reason) == (450, OnboardingReason.LOAD)
    assert decide(policy).reason is OnboardingReason.NOTHING
    measured = onboarding_policy("measured", block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)
    assert decide(measured, ("disk", 400)).reason is OnboardingReason.UNMEASURED


# -- what times are learned from


@given(fixed=st.floats(0, 1), per_unit=st.floats(1e-6, 1), units=st.lists(st.integers(1, 1000), min_size=1))
def test_an_exact_line_is_found(fixed, per_unit, units):
    measured = MeasuredTime()
    for now_s, size in enumerate(units):
        measured.observe(size, fixed + per_unit * size, now_s / 10)
    for size in {units[0], units[-1]} if len(set(units)) < 3 else ():
        assert measured.estimate_s(size, 0.0) > 0
    if len(set(units)) == 1:
        assert measured.estimate_s(units[0], 1.0) == pytest.approx(fixed + per_unit * units[0])
    if max(units) > 10 * min(units) and len(set(units)) == len(units) == 2:
        assert measured.estimate_s(500, 1.0) == pytest.approx(fixed + per_unit * 500, rel=1e-3)


def test_measurements_fade():
    measured = MeasuredTime(half_life_s=10.0)
    assert measured.estimate_s(5, 0.0) is None
    measured.observe(10, 10.0, 0.0)
    for now_s in range(30, 60):
        measured.observe(10, 1.0, float(now_s))
    assert measured.estimate_s(10, 60.0) == pytest.approx(1.0, rel=0.05)
    assert measured.estimate_s(0, 60.0) == 0.0
    assert measured.estimate_s(10, 1000.0) is None


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_nonsense_teaches_nothing(bad):
    measured = MeasuredTime()
    measured.observe(bad, 1.0, 0.0)
    measured.observe(1.0, bad, 0.0)
    assert measured.estimate_s(1, 0.0) is None


def test_the_nearest_known_size_stands_in():
    by_size = MeasuredTimeBySize()
    assert by_size.estimate_s(100, 1, 0.0) is None
    by_size.observe(100, 1, 1.0, 0.0)
    by_size.observe(100_000, 1, 9.0, 0.0)
    assert by_size.estimate_s(10, 1, 0.0) == 1.0
    assert by_size.estimate_s(60_000, 1, 0.0) == 9.0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([("ram", GIB)], f"'ram' of {GIB} bytes is smaller than the device above it \\({2 * GIB} bytes\\)"),
        ([("ram", 4 * GIB), ("disk", 3 * GIB)], f"'disk' of {3 * GIB} bytes .* tier 'ram' above it"),
        ([("ram", 100)], f"100 bytes hold no block of {BLOCK_BYTES} bytes"),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_the_numbers(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_tier_sizes(2 * GIB, [TierSize(*size) for size in sizes], BLOCK_BYTES)


def test_growing_sizes_work():
    check_tier_sizes(2 * GIB, [TierSize("ram", 2 * GIB), TierSize("disk", 20 * GIB)], BLOCK_BYTES)
    check_tier_sizes(2 * GIB, [], BLOCK_BYTES)


def test_routers_are_told_what_a_block_takes_to_load():
    policy = policy_with(ram=10e9, disk=1e9, far=0.5e9)
    kinds = [("ram", KVTier.HOST), ("disk", KVTier.DISK), ("far", KVTier.DISK), ("s3", KVTier.REMOTE)]
    times = policy.block_load_times(kinds, 1.0)
    assert times.host_s == float(f"{BLOCK_BYTES / 10e9:.2g}")
    assert times.disk_s == float(f"{BLOCK_BYTES / 1e9:.2g}"), "the faster of two"
    assert times.remote_s is None
    assert policy.block_load_times(kinds, 10.0) == times, "nothing new was measured"
    assert policy.block_load_times(kinds, 1e6) == BlockLoadTimes()
