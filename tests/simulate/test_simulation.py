"""Whatever comes to whatever fleet: everybody is served once, figures add up, equal runs are equal."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_sdk.engines.mocker import MockerCore
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import Candidate, Router, RoutingContext, RoutingDecision, RoutingRequest
from dynamo_sdk.simulate import Arrival, FleetSpec, Outcome, SimOptions, Workload, simulate
from dynamo_sdk.types import WorkerId

from .fleets import fleet, longest_prefix

arrivals = st.builds(
    lambda at_s, num_input, num_output, ids, priority: Arrival(
        at_s=at_s,
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        hash_ids=tuple(ids),
        priority=priority,
    ),
    st.floats(0, 1),
    st.integers(1, 40),
    st.integers(1, 30),
    st.lists(st.integers(0, 3), max_size=5),
    st.integers(0, 1),
)
followers = st.builds(
    lambda at_s, num_input, num_output: Arrival(
        at_s=at_s, num_input_tokens=num_input, num_output_tokens=num_output, session="s", is_relative=True
    ),
    st.floats(0, 0.5),
    st.integers(1, 40),
    st.integers(1, 10),
)
workloads = st.builds(
    lambda timed, later: Workload(
        name="any",
        arrivals=(
            Arrival(at_s=0.0, num_input_tokens=5, num_output_tokens=2, session="s"),
            *sorted(timed, key=lambda arrival: arrival.at_s),
            *later,
        ),
        block_tokens=8,
    ),
    st.lists(arrivals, max_size=12),
    st.lists(followers, max_size=3),
)
fleets = st.builds(
    lambda router, num_workers, num_decode, num_blocks, block_size, dp_size, caching, tiers: fleet(
        router,
        num_workers=num_workers,
        num_decode_workers=num_decode,
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        dp_size=dp_size,
        enable_prefix_caching=caching,
        tiers=tiers,
    ),
    st.sampled_from(["round-robin", "least-loaded", "power-of-two", longest_prefix]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(24, 40),
    st.sampled_from([3, 4, 8]),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from([(), ({"kind": "ram", "capacity": "128MiB"},), ({"kind": "disk"},)]),
)
options = st.builds(
    SimOptions,
    seed=st.integers(0, 3),
    kv_event_lag_s=st.sampled_from([0.0, 0.05]),
    load_lag_s=st.sampled_from([0.0, 0.2]),
)


@given(workloads, fleets, options)
@settings(max_examples=150)
def test_everybody_is_served_once_and_the_figures_add_up(
    workload: Workload, spec: FleetSpec, how: SimOptions
) -> None:
    outcome = simulate(workload, spec, how)  # which checks all books at the end
    asked = sorted((a.num_input_tokens, a.num_output_tokens) for a in workload.arrivals)
    served = sorted((r.num_input_tokens, r.num_tokens) for r in outcome.requests if r.error is None)
    assert served == asked
    for found in outcome.requests:
        assert found.first_token_s is not None
        assert found.last_token_s is not None
        assert found.arrival_s <= found.first_token_s <= found.last_token_s <= outcome.ended_s
        assert 0 <= found.num_cached_tokens <= found.num_reused_tokens <= found.num_input_tokens
    num_tokens = sum(found.num_tokens for found in outcome.requests)
    assert outcome.gap_counts.sum() == num_tokens - len(outcome.requests)
    num_legs = sum(worker.num_requests for worker in outcome.workers)
    assert num_legs == sum(len(found.workers) for found in outcome.requests)
    if not sum(worker.num_preempted for worker in outcome.workers):
        computed = sum(worker.num_prefill_tokens for worker in outcome.workers)
        assert computed == sum(r.num_input_tokens - r.num_cached_tokens for r in outcome.requests)


@given(workloads, fleets, options)
@settings(max_examples=60)
def test_equal_runs_are_equal_and_steps_at_once_are_single_steps(
    workload: Workload, spec: FleetSpec, how: SimOptions
) -> None:
    first, second = simulate(workload, spec, how), simulate(workload, spec, how)
    assert (first.requests, first.workers) == (second.requests, second.workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MockerCore, "plan_run", lambda core, now_s: None)
        single = simulate(workload, spec, how)
    assert single.requests == first.requests
    assert sum_of_gaps(single) == pytest.approx(sum_of_gaps(first))
    for one_by_one, at_once in zip(single.workers, first.workers, strict=True):
        assert one_by_one.busy_s == pytest.approx(at_once.busy_s)
        assert msgspec.structs.replace(one_by_one, busy_s=at_once.busy_s) == at_once


def sum_of_gaps(outcome: Outcome) -> float:
    return float((outcome.gap_s * outcome.gap_counts).sum())


def one(at_s: float, num_input: int, num_output: int, *ids: int, **more: object) -> Arrival:
    return Arrival(
        at_s=at_s, num_input_tokens=num_input, num_output_tokens=num_output, hash_ids=ids, **more  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_timing_of_one_request() -> None:
    workload = Workload(name="one", arrivals=(one(1.0, 512, 3, 0),))
    (found,) = simulate(workload, fleet(num_blocks=1000)).requests
    prefill_ms = 4.209989e-7 * 512**2 + 1.518344e-2 * 512 + 16.50142
    assert found.ttft_s == pytest.approx(prefill_ms / 1e3)
    shares = [num_tokens / 64_000 for num_tokens in (513, 514)]
    decode_ms = [-25.74 * share**2 + 54.01 * share + 5.74 for share in shares]
    assert found.itl_s == pytest.approx(sum(decode_ms) / 2e3)


def test_a_later_turn_waits_for_the_one_before() -> None:
    later = one(2.0, 64, 1, session="s", is_relative=True)
    workload = Workload(name="chat", arrivals=(one(0.0, 512, 50, 0, session="s"), later))
    first, second = simulate(workload, fleet()).requests
    assert first.last_token_s is not None
    assert second.arrival_s == first.last_token_s + 2.0


def test_a_hand_over_moves_the_prompt() -> None:
    workload = Workload(name="one", arrivals=(one(0.0, 512, 3, 0),))
    spec = fleet(num_workers=1, num_decode_workers=1, kv_bytes_per_token=1000, kv_transfer_gb_per_s=1.0)
    (found,) = simulate(workload, spec).requests
    assert (found.transfer_bytes, found.transfer_s) == (512_000, pytest.approx(512e-6))
    assert found.workers == ["Prefill.0", "Decode.0"]


def test_what_routers_know_is_as_old_as_asked() -> None:
    """With news of its blocks under way, and the decision forgotten, the first request's are not found."""
    twins = (one(0.0, 512, 1, 0), one(20.0, 512, 1, 0))
    workload = Workload(name="twins", arrivals=twins)
    for lag_s, num_predicted in ((0.0, 511), (30.0, 0)):
        spec = fleet(longest_prefix, num_blocks=100)
        _, second = simulate(workload, spec, SimOptions(kv_event_lag_s=lag_s)).requests
        assert second.num_predicted_tokens == num_predicted


def test_what_cannot_run_is_an_error_of_its_own() -> None:
    workload = Workload(name="long", arrivals=(one(0.0, 100, 1), one(0.1, 10, 1)))
    too_long, fits = simulate(workload, fleet(context_length=50)).requests
    assert too_long.error is not None
    assert "maximum context length is 50" in too_long.error
    assert fits.error is None


def test_workers_of_one_model_have_one_block_size() -> None:
    spec = fleet(num_decode_workers=1)
    odd = fleet(block_size=16).pools
    with pytest.raises(ConfigError, match="block_size"):
        simulate(
            Workload(name="w", arrivals=()),
            FleetSpec(pools=spec.pools + odd, router_name="r", new_router=spec.new_router),
        )


def test_without_events_routers_go_by_what_was_sent() -> None:
    twins = (one(0.0, 512, 1, 0), one(1.0, 512, 1, 0))
    spec = fleet(longest_prefix, num_blocks=100)
    options = SimOptions(has_kv_events=False)
    _, second = simulate(Workload(name="twins", arrivals=twins), spec, options).requests
    assert (second.num_predicted_tokens, second.num_cached_tokens) == (511, 448)


def test_a_router_that_chooses_a_stranger_fails_the_request() -> None:
    class Lost(Router):
        def select(
            self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
        ) -> RoutingDecision:
            return RoutingDecision(worker_id=WorkerId("nobody"))

    arrival = Arrival(at_s=0.0, num_input_tokens=5, num_output_tokens=2)
    (record,) = simulate(Workload(name="w", arrivals=(arrival,)), fleet(Lost)).requests
    assert record.error is not None
    assert "was not a candidate" in record.error
