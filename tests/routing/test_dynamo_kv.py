"""The baseline says what the documentation of the original says."""

from __future__ import annotations

import pytest

from dynamo_sdk.interfaces import Candidate, Freed, Overlap, PrefillDone, Routed, RoutingRequest
from dynamo_sdk.routing.config import DynamoKvConfig
from dynamo_sdk.routing.dynamo_kv import DynamoKvRouter
from dynamo_sdk.types import Role, WorkerId

from .strategies import context


def ask(
    keys: list[int], role: Role = Role.AGGREGATED, *, name: str = "r", block_size: int = 1
) -> RoutingRequest:
    return RoutingRequest(
        request_id=name,
        model="m",
        role=role,
        num_tokens=len(keys) * block_size,
        block_size=block_size,
        block_keys=keys,
    )


def holding(name: str, overlap: int = 0, *, host: int = 0, disk: int = 0) -> Candidate:
    found = Overlap(device_blocks=overlap, host_blocks=host, disk_blocks=disk)
    return Candidate(worker_id=WorkerId(name), overlap=found)


def send(router: DynamoKvRouter, worker: str, request: RoutingRequest, *, cached: int = 0) -> None:
    router.select(request, [holding(worker)], context())
    fact = Routed(
        request_id=request.request_id,
        worker_id=WorkerId(worker),
        role=request.role,
        num_tokens=request.num_tokens,
        num_cached_tokens=cached,
    )
    router.observe(fact, 0.0)


def costs(router: DynamoKvRouter, request: RoutingRequest, fleet: list[Candidate]) -> dict[str, float]:
    decision = router.select(request, fleet, context())
    found = {str(cost.worker_id): cost.total for cost in decision.costs}
    assert found[decision.worker_id] == min(found.values())
    return found


def test_worked_example() -> None:
    """Raw prefill 10; overlap and decode blocks (2, 10), (5, 5), (8, 9): the costs are 18, 10, 11."""
    router = DynamoKvRouter()
    keys = [1, 2, 3, 4, 5]
    send(router, "a", ask([11, 12, 13, 14, 15], name="x"))
    send(router, "b", ask(keys, name="y"))
    send(router, "c", ask([1, 22, 23, 24, 25], name="z"))
    fleet = [holding("a", 2), holding("b", 5), holding("c", 8)]
    assert costs(router, ask(keys), fleet) == {"a": 18, "b": 10, "c": 11}


def test_lower_tiers_give_less_credit() -> None:
    fleet = [holding("device", 4), holding("host", host=4), holding("disk", disk=4)]
    found = costs(DynamoKvRouter(), ask(list(range(8))), fleet)
    assert found == {"device": 4 + 8, "host": 5 + 8, "disk": 7 + 8}


def test_pools_of_one_phase_count_what_is_theirs() -> None:
    router = DynamoKvRouter()
    keys = list(range(8))
    assert costs(router, ask(keys, Role.PREFILL), [holding("a", 2)]) == {"a": 6}
    assert costs(router, ask(keys, Role.DECODE), [holding("a", 2)]) == {"a": 8}


def test_prefill_load_ends_with_the_first_token_and_blocks_with_the_request() -> None:
    router = DynamoKvRouter()
    send(router, "a", ask([1, 2, 3, 4], name="x"), cached=1)
    request = ask([9, 8])
    fleet = [holding("a")]
    assert costs(router, request, fleet) == {"a": (3 + 2) + (4 + 2)}
    router.observe(PrefillDone(request_id="x", worker_id=WorkerId("a")), 1.0)
    assert costs(router, request, fleet) == {"a": 2 + (4 + 2)}
    router.observe(Freed(request_id="x", worker_id=WorkerId("a")), 2.0)
    assert costs(router, request, fleet) == {"a": 2 + 2}


def test_temperature_spreads() -> None:
    fleet = [holding("a", 8), holding("b", 0), holding("c", 4)]
    router = DynamoKvRouter(DynamoKvConfig(temperature=0.7))
    ctx = context()
    chosen = [router.select(ask(list(range(8))), fleet, ctx).worker_id for _ in range(400)]
    assert chosen.count(WorkerId("a")) > chosen.count(WorkerId("c")) > chosen.count(WorkerId("b")) > 20


def test_a_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DynamoKvConfig(temperature=-1)
