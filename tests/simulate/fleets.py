"""Small fleets for tests."""

from __future__ import annotations

from dynamo_sdk.engines.mocker import MockerConfig
from dynamo_sdk.interfaces import Router
from dynamo_sdk.plugins import Registry
from dynamo_sdk.routing import router_from_function
from dynamo_sdk.simulate import FleetSpec, PoolSpec
from dynamo_sdk.types import Role

BUILTINS = Registry.of()


@router_from_function
def longest_prefix(request, candidates, context):  # type: ignore[no-untyped-def]
    """Where most of the prompt is cached; among equals, the least busy."""
    return max(candidates, key=lambda found: (found.overlap.device_blocks, -found.num_active_requests))


longest_prefix.uses_overlap = True


def fleet(
    router: str | type[Router] = "round-robin",
    *,
    num_workers: int = 2,
    num_decode_workers: int = 0,
    new_planner: object = None,
    **config: object,
) -> FleetSpec:
    """Aggregated workers; with ``num_decode_workers`` a prefill and a decode pool."""
    mocker = MockerConfig(**config)  # type: ignore[arg-type]
    roles = (
        [(Role.PREFILL, num_workers), (Role.DECODE, num_decode_workers)]
        if num_decode_workers
        else [(Role.AGGREGATED, num_workers)]
    )
    return FleetSpec(
        pools=tuple(
            PoolSpec(service=role.title(), role=role, num_replicas=number, config=mocker)
            for role, number in roles
        ),
        router_name=router if isinstance(router, str) else router.__name__,
        new_router=lambda role: BUILTINS.build_router(router) if isinstance(router, str) else router(),
        new_planner=new_planner,  # type: ignore[arg-type]
    )
