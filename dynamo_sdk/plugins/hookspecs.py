"""Every hook, in one sitting. All are called once per process, none in the path of a request."""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_sdk.types.plan import DeploymentPlan

from .descriptors import (
    CommandDescriptor,
    DiscoveryDescriptor,
    EngineDescriptor,
    KVConnectorDescriptor,
    KVStoreDescriptor,
    LauncherDescriptor,
    PlannerDescriptor,
    RouterDescriptor,
)
from .markers import hookspec


@hookspec
def dynamo_sdk_engines() -> Iterable[EngineDescriptor]:  # type: ignore[empty-body]
    """Return the engines of this plugin."""


@hookspec
def dynamo_sdk_routers() -> Iterable[RouterDescriptor]:  # type: ignore[empty-body]
    """Return the routing policies of this plugin."""


@hookspec
def dynamo_sdk_planners() -> Iterable[PlannerDescriptor]:  # type: ignore[empty-body]
    """Return the scaling policies of this plugin."""


@hookspec
def dynamo_sdk_kv_connectors() -> Iterable[KVConnectorDescriptor]:  # type: ignore[empty-body]
    """Return the ways in which engines of this plugin hand KV blocks over."""


@hookspec
def dynamo_sdk_kv_stores() -> Iterable[KVStoreDescriptor]:  # type: ignore[empty-body]
    """Return the cache tiers of this plugin."""


@hookspec
def dynamo_sdk_launchers() -> Iterable[LauncherDescriptor]:  # type: ignore[empty-body]
    """Return the launchers of this plugin."""


@hookspec
def dynamo_sdk_discoveries() -> Iterable[DiscoveryDescriptor]:  # type: ignore[empty-body]
    """Return the discovery services of this plugin."""


@hookspec
def dynamo_sdk_check_plan(plan: DeploymentPlan) -> Iterable[str]:  # type: ignore[empty-body]
    """Return what speaks against this plan, one sentence each; nothing when it is fine."""


@hookspec
def dynamo_sdk_commands() -> Iterable[CommandDescriptor]:  # type: ignore[empty-body]
    """Return subcommands for ``dynamo-sdk``."""
