"""A graph, a deploy file and what is installed, compiled to a ``DeploymentPlan``.

::

    Graph ────────────┐
    deploy, --set ────┼─> choose values ──> pair legs ──> assign GPUs ──> DeploymentPlan
    registry ─────────┘   with origins                        │
    inventory ────────────────────────────────────────────────┘

Pure and deterministic: equal input gives a plan of equal bytes. What cannot work is refused here,
before any process exists, and everything that is wrong is reported at once: a stage is left out only where
it could not tell what is wrong from what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynamo_sdk.errors import ConfigError, GraphError
from dynamo_sdk.plugins import Registry
from dynamo_sdk.types import Role, TransferSettings
from dynamo_sdk.types.plan import (
    DeploymentPlan,
    EdgePlan,
    Inventory,
    ModelPlan,
    PluginChoice,
    ReplicaPlan,
    ServicePlan,
)

from .assignment import Demand, assign_replicas
from .choices import Chooser, ChosenModel, ChosenService
from .deploy import Deploy, Problems
from .endpoints import endpoints_of
from .graph import Graph, ServiceNode
from .kv_tiers import check_engines
from .markers import EngineService, FrontendService
from .nearest import suggest
from .pairing import Leg, check_block_sizes, check_frontend, choose_connector
from .settings import SettingsLog


def compile_plan(
    graph: Graph,
    *,
    target: str,
    registry: Registry,
    inventory: Inventory,
    deploy: Deploy | None = None,
) -> DeploymentPlan:
    """Compile ``graph``. ``target`` is what the user asked to run; processes import the classes from it.

    Raises ``GraphError`` for what is wrong in Python, ``ConfigError`` for what is wrong in the deploy
    file or ``--set``, ``PluginError`` when a plugin that is needed is broken.
    """
    deploy = deploy or Deploy()
    problems = Problems(deploy)
    log = SettingsLog(deploy)
    nodes = graph.services()
    for node in nodes:
        endpoints_of(node.cls)
    _check_service_names(nodes, deploy, problems)

    chooser = Chooser(graph, deploy, registry, log, problems)
    has_engines = any(issubclass(node.cls, EngineService) for node in nodes)
    models = chooser.choose_models() if has_engines else []
    planner = chooser.choose_planner()
    services = [chooser.choose_service(node, models) for node in nodes]
    if any(service.leg is None and issubclass(service.node.cls, EngineService) for service in services):
        problems.raise_if_any()

    legs = [service.leg for service in services if service.leg]
    _check_frontends(nodes, legs, problems)
    model_plans = tuple(_plan_model(model, legs, registry, problems) for model in models)
    replicas = _place(services, inventory, problems)
    connectors = {plan.spec.name: plan.connector for plan in model_plans}
    transfers = {model.spec.name: model.transfer for model in models}
    plan = DeploymentPlan(
        target=target,
        services=tuple(
            _plan_service(service, replicas[service.node.name], connectors, transfers) for service in services
        ),
        models=model_plans,
        planner=planner,
        settings=log.settings(),
    )
    for objection in registry.check_plan(plan):
        problems.say(f"a plugin refuses this plan: {objection}")
    problems.raise_if_any()
    return plan


def _check_service_names(nodes: Sequence[ServiceNode], deploy: Deploy, problems: Problems) -> None:
    names = [node.name for node in nodes]
    for name in deploy.file.services:
        if name not in names:
            hint = suggest(name, names, noun="services")
            problems.add(("services", name), f"the graph has no such service{hint}")


def _check_frontends(nodes: Sequence[ServiceNode], legs: Sequence[Leg], problems: Problems) -> None:
    """Raises ``GraphError``; what is wrong in the deploy file comes first, as it may be the reason."""
    by_name = {leg.service: leg for leg in legs}
    try:
        for node in nodes:
            if issubclass(node.cls, FrontendService):
                reached = dict.fromkeys(target.__name__ for target in node.edges.values())
                check_frontend(node.name, [by_name[name] for name in reached if name in by_name])
    except GraphError:
        problems.raise_if_any()
        raise


def _plan_model(
    model: ChosenModel, all_legs: Sequence[Leg], registry: Registry, problems: Problems
) -> ModelPlan:
    name = model.spec.name
    legs = [leg for leg in all_legs if leg.model == name]
    if not legs:
        problems.add(
            model.path, f"no service serves model {name!r}; set `model: {name}` for one, or remove it"
        )
    check_engines(model.tiers, legs, model.tiers_path, problems)
    connector = choose_connector(model.connector, legs, registry, model.connector_path, problems)
    recuts_blocks = connector is not None and registry.kv_connectors[connector].recuts_blocks
    check_block_sizes(name, legs, problems, recuts_blocks=recuts_blocks)
    return ModelPlan(
        spec=model.spec,
        router=model.router,
        connector=connector,
        kv_tiers=model.tiers,
        loras=model.loras,
    )


def _place(
    services: Sequence[ChosenService], inventory: Inventory, problems: Problems
) -> Mapping[str, tuple[ReplicaPlan, ...]]:
    """The replicas of each service. Raises ``ConfigError`` with all problems so far where they do not fit."""
    demands = [
        Demand(
            service=service.node.name,
            num_replicas=service.num_replicas,
            gpus_per_replica=service.gpus_per_replica,
        )
        for service in services
    ]
    try:
        return assign_replicas(demands, inventory)
    except ConfigError as error:
        problems.say(error.message)
        problems.raise_if_any()
        raise


def _plan_service(
    service: ChosenService,
    replicas: tuple[ReplicaPlan, ...],
    connectors: Mapping[str, str | None],
    transfers: Mapping[str, TransferSettings | None],
) -> ServicePlan:
    node, leg = service.node, service.leg
    hands_over = leg is not None and leg.role is not Role.AGGREGATED
    return ServicePlan(
        name=node.name,
        factory=node.factory,
        edges=tuple(
            EdgePlan(attribute=attribute, service=target.__name__) for attribute, target in node.edges.items()
        ),
        replicas=replicas,
        gpus_per_replica=service.gpus_per_replica,
        cpus_per_replica=service.section.cpus,
        role=leg.role if leg else None,
        engine=PluginChoice(name=leg.engine.name, args=service.args) if leg else None,
        model=leg.model if leg else None,
        connector=connectors[leg.model] if leg and hands_over else None,
        transfer=transfers[leg.model] if leg and hands_over else None,
        python=service.section.python,
        is_frontend=issubclass(node.cls, FrontendService),
        args={} if leg else service.args,
    )
