"""The terms of the ``kv`` cost, one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynamo_sdk.interfaces import Candidate, Overlap, RoutingContext, RoutingRequest
from dynamo_sdk.routing import CandidateBook, Pick
from dynamo_sdk.routing.config import KvConfig
from dynamo_sdk.routing.kv import KvRouter
from dynamo_sdk.routing.kv_cost import KvCost
from dynamo_sdk.types import BlockLoadTimes, LoadSnapshot, Role, WorkerId

from .strategies import context

A, B = WorkerId("a"), WorkerId("b")
IDLE = Candidate(
    worker_id=A,
    num_blocks=1000,
    prefill_s_per_request=0.01,
    prefill_s_per_token=1e-4,
    prefill_s_per_active_token=1e-7,
    decode_s_per_token=0.02,
    decode_s_per_request=2.0,
)


def ask(num_tokens: int = 1000, role: Role = Role.AGGREGATED) -> RoutingRequest:
    return RoutingRequest(request_id="r", model="m", role=role, num_tokens=num_tokens, block_size=10)


def like(candidate: Candidate, **changes: object) -> Candidate:
    return msgspec.structs.replace(candidate, **changes)


def parts(
    candidate: Candidate, request: RoutingRequest | None = None, now_s: float = 0.0
) -> dict[str, float]:
    [terms] = KvCost().terms(request or ask(), [candidate], context(now_s=now_s))
    return {term.name: term.value for term in terms}


candidates = st.builds(
    Candidate,
    worker_id=st.sampled_from([A, B]),
    overlap=st.builds(Overlap, device_blocks=st.integers(0, 120), host_blocks=st.integers(0, 9)),
    num_blocks=st.none() | st.integers(1, 500),
    num_active_requests=st.integers(0, 40),
    num_active_tokens=st.integers(0, 10_000),
    num_prefill_requests=st.integers(0, 9),
    num_prefill_tokens=st.integers(900, 9000),
    first_prefill_tokens=st.integers(0, 900),
    prefill_since_s=st.none() | st.floats(-100, 0),
    step_at_s=st.none() | st.floats(-100, 0),
    recent_prefill_s=st.floats(0, 100),
    prefill_s_per_request=st.floats(0, 1),
    prefill_s_per_token=st.floats(0, 1e-2),
    prefill_s_per_active_token=st.floats(0, 1e-4),
    decode_s_per_token=st.floats(0, 1),
    decode_s_per_request=st.floats(0, 100),
    num_other_prefill_tokens=st.integers(0, 1000),
    load=st.none() | st.builds(LoadSnapshot, at_s=st.just(0.0), num_free_blocks=st.integers(0, 9)),
    load_at_s=st.none() | st.floats(-20, 0),
)


@given(fleet=st.lists(candidates, min_size=1, max_size=5), role=st.sampled_from(list(Role)))
def test_terms_are_times_and_add_up(fleet: list[Candidate], role: Role) -> None:
    cost, ctx = KvCost(), context()
    totals = cost.totals(ask(role=role), fleet, ctx)
    for total, terms in zip(totals, cost.terms(ask(role=role), fleet, ctx), strict=True):
        assert total == pytest.approx(sum(term.value for term in terms))
        assert all(term.value >= 0 for term in terms)


def test_an_idle_worker_costs_the_prompt_twice() -> None:
    """Once itself; and for its time the worker does nothing else."""
    assert parts(IDLE)["prefill_s"] == pytest.approx(0.01 + 0.1)
    assert parts(IDLE)["others_s"] == pytest.approx(0.01 + 0.1)
    assert parts(IDLE)["wait_s"] == 0


def test_what_is_cached_is_not_computed() -> None:
    tiers = Overlap(device_blocks=40, host_blocks=10, remote_blocks=10, disk_blocks=10)
    found = parts(like(IDLE, overlap=tiers))
    assert found["prefill_s"] == pytest.approx(0.01 + 1e-4 * (1000 - 400 - 80 - 60 - 30))


TIERS = Overlap(device_blocks=40, host_blocks=20, disk_blocks=10)


def with_load_times(**times: float) -> Candidate:
    load = LoadSnapshot(
        at_s=0.0, num_blocks=1000, num_free_blocks=1000, block_load_times=BlockLoadTimes(**times)
    )
    return like(IDLE, overlap=TIERS, load=load, load_at_s=0.0)


def test_what_lies_below_costs_its_load_where_that_is_known() -> None:
    """Ten tokens, a block, take a millisecond to compute."""
    found = parts(with_load_times(host_s=2e-4, disk_s=7e-4))
    assert found["prefill_s"] == pytest.approx(0.01 + 1e-4 * (1000 - 700) + 20 * 2e-4 + 10 * 7e-4)


def test_what_is_slower_to_load_than_to_compute_costs_the_computing() -> None:
    found = parts(with_load_times(host_s=2e-4, disk_s=50e-3))
    assert found["prefill_s"] == pytest.approx(0.01 + 1e-4 * (1000 - 600) + 20 * 2e-4)


def test_what_a_worker_would_rather_compute_is_not_counted_as_cached() -> None:
    book = CandidateBook()
    assert book.cached_tokens(with_load_times(host_s=2e-4, disk_s=50e-3), 1000, 10) == 600
    assert book.cached_tokens(with_load_times(), 1000, 10) == 700


def test_a_tier_of_which_the_worker_knows_nothing_yet_has_a_share() -> None:
    found = parts(with_load_times(disk_s=7e-4))
    assert found["prefill_s"] == pytest.approx(0.01 + 1e-4 * (1000 - 700) + 20 * 2e-4 + 10 * 7e-4)


def test_what_is_loaded_takes_memory_as_if_it_were_computed() -> None:
    def memory_s(overlap: Overlap) -> float:
        load = LoadSnapshot(
            at_s=0.0, num_blocks=1000, num_free_blocks=50, block_load_times=BlockLoadTimes(host_s=0.0)
        )
        busy = like(IDLE, load=load, load_at_s=0.0, num_active_requests=10, num_active_tokens=10_000)
        return parts(like(busy, num_other_requests=1, overlap=overlap))["memory_s"]

    in_ram, on_device = Overlap(host_blocks=80), Overlap(device_blocks=80)
    assert memory_s(in_ram) == pytest.approx(memory_s(Overlap()))
    assert memory_s(on_device) < memory_s(in_ram)


def test_the_last_token_is_always_computed() -> None:
    assert parts(like(IDLE, overlap=Overlap(device_blocks=100)))["prefill_s"] == pytest.approx(0.0101)


def test_those_in_line_come_first() -> None:
    busy = like(
        IDLE,
        num_active_requests=2,
        num_prefill_requests=2,
        num_prefill_tokens=3000,
        first_prefill_tokens=1000,
        prefill_since_s=0.0,
    )
    assert parts(busy, now_s=0.05)["wait_s"] == pytest.approx(0.11 + 0.21 - 0.05)
    assert parts(busy)["others_s"] == pytest.approx(3 * 0.11), "as many will come behind it"


def test_what_is_overdue_gets_dearer() -> None:
    hung = like(
        IDLE,
        num_active_requests=1,
        num_prefill_requests=1,
        num_prefill_tokens=1000,
        first_prefill_tokens=1000,
        prefill_since_s=0.0,
    )
    waits = [parts(hung, now_s=now_s)["wait_s"] for now_s in (0.0, 0.11, 1.0, 10.0)]
    assert waits == pytest.approx([0.11, 0.0, 0.89, 9.89])


def test_a_decoding_worker_is_waited_for_and_beside() -> None:
    decoding = like(IDLE, num_active_requests=1, num_active_tokens=200_000, step_at_s=1.0)
    assert parts(decoding, now_s=1.005)["wait_s"] == pytest.approx(0.02 - 0.005)
    assert parts(decoding)["prefill_s"] == pytest.approx(0.11 + 0.02)


def test_memory_costs_before_it_is_full_and_a_wait_when_it_is() -> None:
    def memory_s(num_free: int) -> float:
        load = LoadSnapshot(at_s=0.0, num_blocks=1000, num_free_blocks=num_free)
        busy = like(IDLE, load=load, load_at_s=0.0, num_active_requests=10, num_active_tokens=10_000)
        return parts(like(busy, num_other_requests=1))["memory_s"]

    assert memory_s(1000) < 0.001
    assert memory_s(200) == pytest.approx(2.0 * 100 / 1000 * 2.718281828**-1)
    assert memory_s(50) == pytest.approx(2.0 * (50 + 150) / 1000)


def test_an_old_report_says_nothing() -> None:
    full = LoadSnapshot(at_s=0.0, num_blocks=1000, num_free_blocks=0)
    assert parts(like(IDLE, load=full, load_at_s=-11.0)) == parts(IDLE)


def test_prefill_pools_need_no_memory_and_decode_pools_count_the_answer() -> None:
    full = like(IDLE, load=LoadSnapshot(at_s=0.0, num_blocks=100, num_free_blocks=0), load_at_s=0.0)
    assert parts(full, ask(role=Role.PREFILL))["memory_s"] == 0
    decoding = like(IDLE, num_active_requests=1, num_active_tokens=100_000)
    assert parts(decoding, ask(role=Role.DECODE))["decode_s"] == pytest.approx(0.01 * 100)
    assert parts(decoding)["decode_s"] == 0


def test_more_than_a_share_of_recent_work_takes_the_credit_away() -> None:
    def prefill_s(recent_s: float) -> float:
        lucky = like(IDLE, overlap=Overlap(device_blocks=90), recent_prefill_s=recent_s)
        other = like(IDLE, worker_id=B, recent_prefill_s=100.0)
        [terms, _] = KvCost().terms(ask(), [lucky, other], context())
        return terms[1].value

    assert prefill_s(100.0) == pytest.approx(0.02)
    assert prefill_s(140.0) == pytest.approx(0.02), "less than a quarter more is chance"
    assert 0.02 < prefill_s(200.0) < 0.11
    assert prefill_s(400.0) == pytest.approx(0.11)


def test_only_with_other_frontends_is_the_second_best_good_enough() -> None:
    def chosen(num_others: int) -> Counter[str]:
        busier = like(IDLE, worker_id=B, num_active_tokens=500_000, num_active_requests=4)
        best = like(IDLE, num_other_requests=num_others)
        router, ctx = KvRouter(), context()
        return Counter(router.select(ask(), [best, busier], ctx).worker_id for _ in range(100))

    assert chosen(0) == {A: 100}
    assert min(chosen(40).values()) > 25


def test_quiet_frontends_do_not_scatter_what_is_cached() -> None:
    """One request of somebody else's, perhaps our own of a moment ago, in the report of one of three."""
    cached = like(IDLE, overlap=Overlap(device_blocks=100), num_other_requests=1)
    fleet = [like(IDLE, worker_id=B), cached, like(IDLE, worker_id="c")]
    router, ctx = KvRouter(), context()
    assert {router.select(ask(), fleet, ctx).worker_id for _ in range(100)} == {A}


def never_a(
    request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
) -> Sequence[Candidate]:
    return [candidate for candidate in candidates if candidate.worker_id != A]


def pick_last(candidates: Sequence[Candidate], totals: Sequence[float], context: RoutingContext) -> Pick:
    return Pick(len(candidates) - 1, "the last")


def test_stages_are_named_by_import_string() -> None:
    here = __name__
    fleet = [IDLE, like(IDLE, worker_id=B, num_active_tokens=10**6)]
    assert KvRouter().select(ask(), fleet, context()).worker_id == A
    filtered = KvRouter(KvConfig(filters=(f"{here}:never_a",)))
    decision = filtered.select(ask(), fleet, context())
    assert decision.worker_id == B
    assert [cost.filtered_by for cost in decision.costs] == [None, "never_a"]
    picked = KvRouter(KvConfig(picker=f"{here}:pick_last", scorers=("dynamo_sdk.routing:active_requests",)))
    decision = picked.select(ask(), fleet, context())
    assert (decision.worker_id, decision.reason) == (B, "the last")
    assert decision.costs[0].terms[-1].name == "active_requests"
    missing = (
        r"cannot import 'nowhere:x': there is no module 'nowhere'; put it beside the graph file, or install"
    )
    with pytest.raises(ValidationError, match=missing):
        KvConfig(picker="nowhere:x")
