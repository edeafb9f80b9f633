"""Plugins: pluggy finds them, a typed ``Registry`` owns every hook call.

A plugin is a module named by an entry point of the group ``dynamo_sdk``; its functions marked with
``hookimpl`` return descriptors. ``PluginConfig``, the base of argument models, lives in
``dynamo_sdk.plugins.config``, so that importing this package imports no pydantic.
"""

from .catalogue import Catalogue
from .descriptors import (
    CommandDescriptor,
    Descriptor,
    DiscoveryDescriptor,
    EngineDescriptor,
    Kind,
    KVConnectorDescriptor,
    KVStoreDescriptor,
    LauncherDescriptor,
    PlannerDescriptor,
    RouterDescriptor,
)
from .importing import import_object
from .markers import hookimpl
from .problems import Problem, Rule, Source
from .registry import Objection, Registry

__all__ = [
    "Catalogue",
    "CommandDescriptor",
    "Descriptor",
    "DiscoveryDescriptor",
    "EngineDescriptor",
    "KVConnectorDescriptor",
    "KVStoreDescriptor",
    "Kind",
    "LauncherDescriptor",
    "Objection",
    "PlannerDescriptor",
    "Problem",
    "Registry",
    "RouterDescriptor",
    "Rule",
    "Source",
    "hookimpl",
    "import_object",
]
