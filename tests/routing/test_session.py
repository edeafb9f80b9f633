from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import RoutingContext, RoutingRequest
from dynamo_sdk.routing.config import SessionConfig
from dynamo_sdk.routing.direct import DirectRouter
from dynamo_sdk.routing.session import SessionRouter
from dynamo_sdk.types import WorkerId

from .strategies import context, request, worker

FLEET = [worker("a", active=1), worker("b"), worker("c", active=2)]
CONFIG = SessionConfig(ttl_s=60, max_sessions=3, otherwise="least-loaded")


def of(session: str | None) -> RoutingRequest:
    return msgspec.structs.replace(request(), session=session)


def at(now_s: float) -> RoutingContext:
    return context(now_s=now_s)


def test_a_session_stays_where_it_began() -> None:
    router = SessionRouter(CONFIG)
    assert router.select(of("s"), FLEET, at(0)).worker_id == "b"
    busy = [worker("a"), worker("b", active=9), worker("c")]
    assert router.select(of("s"), busy, at(1)).worker_id == "b"
    assert router.select(of("t"), busy, at(1)).worker_id != "b"
    assert router.select(of(None), busy, at(1)).worker_id != "b"
    assert router.num_sessions == 2


def test_it_moves_for_good_when_its_worker_is_no_candidate() -> None:
    router = SessionRouter(CONFIG)
    router.select(of("s"), FLEET, at(0))
    moved = router.select(of("s"), [FLEET[0], FLEET[2]], at(1)).worker_id
    assert moved == "a"
    assert router.select(of("s"), FLEET, at(2)).worker_id == "a"


def test_it_ends_some_time_after_its_last_request() -> None:
    router = SessionRouter(CONFIG)
    busy = [worker("a"), worker("b", active=9)]
    router.select(of("s"), FLEET, at(0))
    assert router.select(of("s"), busy, at(59)).worker_id == "b"
    assert router.select(of("s"), busy, at(118)).worker_id == "b"
    assert router.select(of("s"), busy, at(179)).worker_id == "a"


def test_the_longest_unused_are_forgotten_first() -> None:
    router = SessionRouter(CONFIG)
    for number, name in enumerate("stsuv"):
        router.select(of(name), FLEET, at(number))
    assert router.num_sessions == 3
    busy = [worker("a"), worker("b", active=9)]
    assert router.select(of("s"), busy, at(9)).worker_id == "b"
    assert router.select(of("t"), busy, at(9)).worker_id == "a"


def test_overlaps_are_looked_up_when_the_other_router_needs_them() -> None:
    assert SessionRouter().uses_overlap
    assert not SessionRouter(CONFIG).uses_overlap


def test_direct_goes_where_the_request_says() -> None:
    named = msgspec.structs.replace(request(), worker_id=WorkerId("c"))
    assert DirectRouter().select(named, FLEET, context()).worker_id == "c"
    assert DirectRouter().select(request(), FLEET, context()).worker_id == "b"
    stranger = msgspec.structs.replace(request(), worker_id=WorkerId("z"))
    with pytest.raises(InvalidRequest, match=r"no worker 'z' can take the request \(there are a, b, c\)"):
        DirectRouter().select(stranger, FLEET, context())
