"""What tiers do to first tokens, in virtual time: chats whose history no longer fits the device."""

from __future__ import annotations

from statistics import mean

import pytest

from dynamo_sdk.bench.report import Targets
from dynamo_sdk.simulate import Outcome, simulate
from dynamo_sdk.simulate.report import make_report
from dynamo_sdk.simulate.text import rows
from dynamo_sdk.simulate.workloads import parse_generator

from .fleets import fleet

CHATS = "chats,sessions=80,turns=10,rate=1,message_tokens=1024,output_tokens=64,think_s=30"
"""Together they hold about 11,000 blocks of 64 tokens in the end."""
RAM = {"kind": "ram", "capacity": "128GiB"}


def chats(router: str = "round-robin", num_workers: int = 1, load: str = CHATS, **config: object) -> Outcome:
    workload = parse_generator(load).make(seed=0, block_tokens=64)
    return simulate(workload, fleet(router, num_workers=num_workers, **({"num_blocks": 4096} | config)))


def ttft_s(outcome: Outcome) -> float:
    assert all(found.error is None for found in outcome.requests)
    return mean(found.ttft_s for found in outcome.requests if found.ttft_s is not None)


@pytest.fixture(scope="module")
def without() -> Outcome:
    return chats()


def test_eighty_users_of_ten_turns_get_first_tokens_forty_percent_sooner(without: Outcome) -> None:
    with_ram = chats(tiers=[RAM])
    assert ttft_s(with_ram) < 0.6 * ttft_s(without)
    loaded = [found for found in with_ram.requests if found.num_loaded_tokens]
    assert len(loaded) > len(with_ram.requests) / 4
    for found in loaded:
        assert 0 < found.num_loaded_tokens <= found.num_cached_tokens
        assert found.load_s >= found.num_loaded_tokens * 131_072 / 25e9
    assert with_ram.tiers.num_decisions["load"] == len(loaded)


def test_a_tier_that_is_slower_than_computing_is_left_alone(without: Outcome) -> None:
    """A block takes 8 ms to load and less than one to compute."""
    with_slow = chats(tiers=[RAM], tier_speeds={"ram": {"read_gb_per_s": 1.0}})
    assert ttft_s(with_slow) == pytest.approx(ttft_s(without), rel=0.01)
    assert not any(found.num_loaded_tokens for found in with_slow.requests)
    assert with_slow.tiers.num_decisions["recompute"] > 200
    (ram,) = with_slow.tiers.tiers
    assert ram.store.read_bytes < 0.01 * ram.store.written_bytes, "only to measure it"


def test_a_tier_is_left_where_it_is_slower_and_used_where_it_is_not(without: Outcome) -> None:
    """A transfer takes 150 ms before its first byte: only long prefixes are worth it."""
    with_far = chats(tiers=[RAM], tier_speeds={"ram": {"latency_ms": 150}})
    loaded = [found.num_loaded_tokens for found in with_far.requests if found.num_loaded_tokens]
    assert loaded
    assert min(loaded) > 4000
    assert ttft_s(with_far) < ttft_s(without)


BUSY = "chats,sessions=80,turns=10,rate=1,message_tokens=1024,output_tokens=64,think_s=5"


def test_a_busy_device_leaves_work_to_a_tier_that_is_somewhat_slower() -> None:
    """A block takes 1.4 ms to load and about one to compute; steps are what everybody waits for."""
    disk = {"kind": "disk", "capacity": "512GiB", "min_uses": 0}
    without, with_disk = chats("kv", load=BUSY), chats("kv", load=BUSY, tiers=[disk])
    assert ttft_s(with_disk) < 0.75 * ttft_s(without)
    assert with_disk.tiers.num_decisions["load"] > 100
    far_slower = chats("kv", load=BUSY, tiers=[disk], tier_speeds={"disk": {"read_gb_per_s": 1e-3}})
    assert ttft_s(far_slower) == pytest.approx(ttft_s(without), rel=0.01), "a megabyte per second"
    assert far_slower.tiers.num_decisions["load"] == 0


def test_routers_see_what_lies_in_ram() -> None:
    load = "chats,sessions=40,turns=8,rate=1,message_tokens=1024,output_tokens=64,think_s=30"
    how = {"num_workers": 4, "load": load, "num_blocks": 512, "tiers": [RAM]}
    blind, seeing = chats("round-robin", **how), chats("kv", **how)  # type: ignore[arg-type]
    predicted = [found.num_predicted_tokens or 0 for found in seeing.requests]
    cached = [found.num_cached_tokens for found in seeing.requests]
    assert sum(cached) > 1.3 * sum(found.num_cached_tokens for found in blind.requests)
    assert sum(predicted) == pytest.approx(sum(cached), rel=0.05)


def test_equal_runs_are_equal() -> None:
    load = "chats,sessions=20,turns=6,rate=2,message_tokens=1024,output_tokens=64,think_s=5"
    runs = [chats("kv", 2, load, num_blocks=512, tiers=[RAM]) for _ in range(2)]
    assert runs[0].requests == runs[1].requests
    assert runs[0].tiers == runs[1].tiers


def test_the_report_shows_each_tier() -> None:
    load = "chats,sessions=20,turns=6,rate=2,message_tokens=1024,output_tokens=64,think_s=5"
    outcomes = [chats("kv", 1, load, num_blocks=512, tiers=tiers) for tiers in ([], [RAM])]
    workload = parse_generator(load).make(seed=0, block_tokens=64)
    report = make_report(workload, outcomes, targets=Targets(), settings={})
    shown = {name.strip(): [show(policy) for policy in report.policies] for name, show in rows(report)}
    ram = outcomes[1].tiers.tiers[0]
    assert shown["ram: blocks asked for"] == ["-", f"{ram.counts.num_lookup_blocks:,}"]
    assert shown["found"] == ["-", f"{ram.counts.num_hit_blocks / ram.counts.num_lookup_blocks:.1%}"]
    assert shown["prefixes loaded"] == ["-", str(outcomes[1].tiers.num_decisions["load"])]
    assert report.policies[0].tiers is None
    assert report.policies[1].reuse.loaded
