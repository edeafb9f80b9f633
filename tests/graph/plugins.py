"""Engines, routers and connectors that exist on paper only: what the compiler needs to know of them."""

from __future__ import annotations

from dynamo_sdk.plugins import (
    EngineDescriptor,
    KVConnectorDescriptor,
    PlannerDescriptor,
    Registry,
    RouterDescriptor,
    hookimpl,
)
from dynamo_sdk.plugins.config import PluginConfig
from dynamo_sdk.types import Role
from dynamo_sdk.types.plan import DeploymentPlan


class PaperConfig(PluginConfig):
    block_size: int = 32
    max_num_seqs: int | None = None
    names: tuple[str, ...] = ("a", "b")


class NeedyConfig(PluginConfig):
    license: str


def _engine(
    name: str, *, connectors: tuple[str, ...] = (), roles: tuple[Role, ...] = tuple(Role)
) -> EngineDescriptor:
    return EngineDescriptor(
        name=name,
        factory="nowhere:Engine",
        config="tests.graph.plugins:PaperConfig",
        roles=roles,
        connectors=connectors,
        block_size_arg="block_size",
        default_block_size=32,
    )


class PaperPlugin:
    @hookimpl
    def dynamo_sdk_engines(self) -> list[EngineDescriptor]:
        return [
            _engine("paper", connectors=("post", "pigeon", "lost")),
            _engine("papyrus", connectors=("pigeon", "lost", "post")),
            _engine("stone", connectors=("chisel",)),
            _engine("slate", connectors=("lost",)),
            _engine("whole", roles=(Role.AGGREGATED,)),
            EngineDescriptor(
                name="needy", factory="nowhere:Engine", config="tests.graph.plugins:NeedyConfig"
            ),
            EngineDescriptor(name="absent", factory="nowhere:Engine", config="no_such_module:Config"),
        ]

    @hookimpl
    def dynamo_sdk_routers(self) -> list[RouterDescriptor]:
        return [
            RouterDescriptor(
                name="picky", factory="nowhere:Router", config="tests.graph.plugins:NeedyConfig"
            ),
        ]

    @hookimpl
    def dynamo_sdk_planners(self) -> list[PlannerDescriptor]:
        return [
            PlannerDescriptor(
                name="wise", factory="nowhere:Planner", config="tests.graph.plugins:PaperConfig"
            )
        ]

    @hookimpl
    def dynamo_sdk_kv_connectors(self) -> list[KVConnectorDescriptor]:
        return [
            KVConnectorDescriptor(name=name, factory="nowhere:Connector", recuts_blocks=name == "chisel")
            for name in ("post", "pigeon", "chisel")
        ]


class Objector:
    @hookimpl
    def dynamo_sdk_check_plan(self, plan: DeploymentPlan) -> list[str]:
        return [f"{len(plan.services)} services are too many"]


def paper_registry(*more: object) -> Registry:
    return Registry.of(PaperPlugin(), *more)
