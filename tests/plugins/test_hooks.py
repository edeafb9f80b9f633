"""One test per hook, by its name; ``test_docs`` sees to it that none is missing."""

from __future__ import annotations

from collections.abc import Iterator

from dynamo_sdk.plugins import (
    CommandDescriptor,
    DiscoveryDescriptor,
    EngineDescriptor,
    KVConnectorDescriptor,
    KVStoreDescriptor,
    LauncherDescriptor,
    PlannerDescriptor,
    Registry,
    RouterDescriptor,
    hookimpl,
)
from dynamo_sdk.types.plan import DeploymentPlan

PLAN = DeploymentPlan(target="graph.py", services=(), models=())


def a_command() -> None:
    """What a plugin's command is."""


class Everything:
    """A plugin with one of each; some hooks are generators, which is allowed."""

    @hookimpl
    def dynamo_sdk_engines(self) -> list[EngineDescriptor]:
        return [EngineDescriptor(name="mine", factory="m:C")]

    @hookimpl
    def dynamo_sdk_routers(self) -> Iterator[RouterDescriptor]:
        yield RouterDescriptor(name="mine", factory="m:C")

    @hookimpl
    def dynamo_sdk_planners(self) -> tuple[PlannerDescriptor, ...]:
        return (PlannerDescriptor(name="mine", factory="m:C"),)

    @hookimpl
    def dynamo_sdk_kv_connectors(self) -> list[KVConnectorDescriptor]:
        return [KVConnectorDescriptor(name="mine", factory="m:C")]

    @hookimpl
    def dynamo_sdk_kv_stores(self) -> list[KVStoreDescriptor]:
        return [KVStoreDescriptor(name="mine", factory="m:C")]

    @hookimpl
    def dynamo_sdk_launchers(self) -> list[LauncherDescriptor]:
        return [LauncherDescriptor(name="mine", factory="m:C")]

    @hookimpl
    def dynamo_sdk_discoveries(self) -> list[DiscoveryDescriptor]:
        return [DiscoveryDescriptor(name="mine", factory="m:C")]

    @hookimpl
    def dynamo_sdk_check_plan(self, plan: DeploymentPlan) -> list[str]:
        return [f"{plan.target} is not to my taste"]

    @hookimpl
    def dynamo_sdk_commands(self) -> list[CommandDescriptor]:
        return [CommandDescriptor(name="mine", factory="tests.plugins.test_hooks:a_command")]


REGISTRY = Registry.of(Everything())


def test_dynamo_sdk_engines() -> None:
    assert REGISTRY.engines.require("mine").factory == "m:C"


def test_dynamo_sdk_routers() -> None:
    assert REGISTRY.routers.require("mine").factory == "m:C"


def test_dynamo_sdk_planners() -> None:
    assert REGISTRY.planners.require("mine").factory == "m:C"


def test_dynamo_sdk_kv_connectors() -> None:
    assert REGISTRY.kv_connectors.require("mine").factory == "m:C"


def test_dynamo_sdk_kv_stores() -> None:
    assert REGISTRY.kv_stores.require("mine").factory == "m:C"


def test_dynamo_sdk_launchers() -> None:
    assert REGISTRY.launchers.require("mine").factory == "m:C"


def test_dynamo_sdk_discoveries() -> None:
    assert REGISTRY.discoveries.require("mine").factory == "m:C"


def test_dynamo_sdk_commands() -> None:
    assert REGISTRY.load_command(REGISTRY.commands.require("mine")) is a_command


def test_dynamo_sdk_check_plan() -> None:
    class Raises:
        @hookimpl
        def dynamo_sdk_check_plan(self) -> list[str]:  # the argument may be left out
            raise ValueError("no")

    class Silent:
        @hookimpl
        def dynamo_sdk_check_plan(self, plan: DeploymentPlan) -> list[str]:
            return []

    registry = Registry.of(Everything(), Raises(), Silent())
    assert [str(objection) for objection in registry.check_plan(PLAN)] == [
        "graph.py is not to my taste (plugin 'Everything' of local 0)",
        "its dynamo_sdk_check_plan raised ValueError: no (plugin 'Raises' of local 0)",
    ]
    assert Registry.of(Silent()).check_plan(PLAN) == ()
