"""Loading against recomputing: the decision, what it learns from, and sizes that cannot work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import (
    MeasuredTime,
    MeasuredTimeBySize,
    OnboardingPolicy,
    OnboardingReason,
    TierRun,
    TierSize,
    check_tier_sizes,
)
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


def decide(policy, *runs, num_device_blocks=0, num_prompt_tokens=7201, now_s=1.0):
    return policy.decide(
        [TierRun(tier=tier, num_blocks=num_blocks) for tier, num_blocks in runs],
        num_device_blocks=num_device_blocks,
        num_prompt_tokens=num_prompt_tokens,
        now_s=now_s,
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
