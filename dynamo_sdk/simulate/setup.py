"""From a compiled plan to what is simulated: its engine services as mockers, its router, its planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import isclass

from pydantic import ValidationError

from dynamo_sdk.engines.mocker import MockerConfig
from dynamo_sdk.engines.mocker.tier_config import planned_tiers
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.paths import format_path
from dynamo_sdk.graph.plugin_args import wrong_args
from dynamo_sdk.interfaces import Router
from dynamo_sdk.plugins import Registry
from dynamo_sdk.routing import router_from_function
from dynamo_sdk.routing.importing import imported
from dynamo_sdk.runtime.model_path import DEMO, resolve_model_path
from dynamo_sdk.types import Role
from dynamo_sdk.types.plan import (
    DeploymentPlan,
    GpuDevice,
    HostInventory,
    Inventory,
    Json,
    ModelPlan,
    ServicePlan,
)

from .spec import FleetSpec, PoolSpec

MOCKER = "mocker"
BOUNDLESS = Inventory(
    hosts=(
        HostInventory(
            name="simulated",
            num_cpus=1 << 16,
            gpus=tuple(GpuDevice(id=str(number), memory_bytes=1 << 40) for number in range(1 << 12)),
        ),
    )
)
"""More than anybody asks for: nothing is started, so a plan may be larger than this host."""


def fleet_specs(
    plan: DeploymentPlan,
    registry: Registry,
    *,
    model: str | None = None,
    mocker_args: Mapping[str, Json] | None = None,
    policies: Sequence[str] = (),
) -> list[FleetSpec]:
    """One fleet per policy: ``policies``, or the plan's own router when there are none.

    A policy is the name of a router, or the import string of a router class or a routing function. Services
    with another engine than the mocker run as mockers with those of their arguments that the mocker has, too.
    ``mocker_args`` come on top, for all. Raises ``ConfigError`` or ``PluginError``.
    """
    name = _choose_model(plan, model)
    model_plan = next(found for found in plan.models if found.spec.name == name)
    services = [service for service in plan.services if service.model == name and service.engine is not None]
    roles = {service.role for service in services}
    if Role.PREFILL in roles and Role.DECODE not in roles:
        raise ConfigError(f"model {name!r} has prefill workers and no decode workers to hand over to")
    pools = tuple(_pool(service, model_plan, mocker_args or {}) for service in services)
    planner = plan.planner
    new_planner = (
        None if planner is None else partial(registry.build_planner, planner.name, dict(planner.args))
    )
    own = model_plan.router
    return [
        FleetSpec(
            pools=pools,
            router_name=policy,
            new_router=_RouterMaker(policy, registry, dict(own.args) if policy == own.name else {}),
            new_planner=new_planner,
        )
        for policy in dict.fromkeys(policies or [own.name])
    ]


def _choose_model(plan: DeploymentPlan, model: str | None) -> str:
    names = [found.spec.name for found in plan.models]
    if not names:
        raise ConfigError("the graph has no engine service, so there is nothing to simulate")
    if model is None and len(names) == 1:
        return names[0]
    if model not in names:
        asked = "several models are served, name one" if model is None else f"there is no model {model!r}"
        raise ConfigError(f"--model: {asked} (models: {', '.join(names)})")
    return model


def _pool(service: ServicePlan, model: ModelPlan, mocker_args: Mapping[str, Json]) -> PoolSpec:
    assert service.engine is not None, "it was chosen for its engine"
    assert service.role is not None, "engines have roles"
    args = dict(service.engine.args)
    if service.engine.name != MOCKER:
        args = {key: value for key, value in args.items() if key in MockerConfig.model_fields}
    try:
        config = MockerConfig.model_validate(args | dict(mocker_args))
    except ValidationError as error:
        details = "; ".join(
            ("--mocker: " if loc[:1] and loc[0] in mocker_args else f"services.{service.name}.args.")
            + f"{format_path(loc)}: {message}"
            for loc, message in wrong_args(error, MockerConfig, "engine 'mocker'")
        )
        raise ConfigError(details) from error
    if not config.tiers:
        config = config.model_copy(update={"tiers": planned_tiers(model.kv_tiers)})
    model_path = model.spec.path
    return PoolSpec(
        service=service.name,
        role=service.role,
        num_replicas=len(service.replicas),
        config=config,
        gpus_per_replica=max(1, service.gpus_per_replica),
        model_path=str(resolve_model_path(model_path)) if model_path == DEMO else model_path,
    )


class _RouterMaker:
    """Makes a fresh router for each pool, as a frontend does."""

    def __init__(self, policy: str, registry: Registry, args: dict[str, Json]) -> None:
        self._policy = policy
        self._registry = registry
        self._args = args
        self(Role.AGGREGATED)  # a policy that cannot be made is found out before any simulation

    def __call__(self, role: Role) -> Router:
        if ":" not in self._policy:
            return self._registry.build_router(self._policy, self._args)
        found = imported(self._policy)
        if not isclass(found) and callable(found):
            found = router_from_function(found)
        router = found() if isclass(found) else found
        if not isinstance(router, Router):
            raise ConfigError(f"policy {self._policy} is no router, and no function that chooses a candidate")
        return router
