"""Candidates and requests, drawn by hypothesis."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from dynamo_sdk.interfaces import Candidate, RoutingContext, RoutingRequest
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

loads = st.builds(
    LoadSnapshot,
    at_s=st.floats(0, 1e6),
    num_running=st.integers(0, 50),
    num_waiting=st.integers(0, 50),
)


@st.composite
def fleets(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 8) -> list[Candidate]:
    """Distinct workers and ranks; some have never reported."""
    seats = draw(
        st.lists(
            st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)),
            min_size=min_size,
            max_size=max_size,
            unique=True,
        )
    )
    fleet = []
    for worker, rank in seats:
        load = draw(st.none() | loads)
        fleet.append(
            Candidate(
                worker_id=WorkerId(worker),
                dp_rank=rank,
                num_active_requests=draw(st.integers(0, 40)),
                load=load,
                load_at_s=None if load is None else -draw(st.floats(0, 30)),
            )
        )
    return fleet


def request(role: Role = Role.AGGREGATED) -> RoutingRequest:
    return RoutingRequest(request_id="r", model="m", role=role, num_tokens=10)


def context(seed: int = 0, now_s: float = 0.0) -> RoutingContext:
    return RoutingContext(now_s=now_s, rng=Random(seed), is_explaining=True)


def worker(name: str, *, active: int = 0, load: LoadSnapshot | None = None, age_s: float = 0.0) -> Candidate:
    return Candidate(
        worker_id=WorkerId(name),
        num_active_requests=active,
        load=load,
        load_at_s=None if load is None else -age_s,
    )
