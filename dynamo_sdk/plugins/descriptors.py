"""What hooks return: a name, an import string, and what must be known before anything heavy is imported.

A descriptor is data. Printing a plan for an engine that needs a GPU imports neither the engine nor its
libraries; only the process that runs it follows the import string.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from dynamo_sdk.errors import PluginError
from dynamo_sdk.types import KVTier, Role

_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")
_IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Kind(StrEnum):
    """What can be plugged in, as the command line spells it."""

    ENGINE = "engine"
    ROUTER = "router"
    PLANNER = "planner"
    KV_CONNECTOR = "kv-connector"
    KV_STORE = "kv-store"
    LAUNCHER = "launcher"
    DISCOVERY = "discovery"
    COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One thing that a plugin offers.

    ``name``: what users write, lower case, such as ``power-of-two``. ``factory``: ``package.module:Class``.
    ``config``: ``package.module:Model``, the pydantic model of its ``args``; None = it takes no arguments.
    ``requirement``: what ``pip install`` needs when the factory's imports are missing.
    Raises ``PluginError`` when a name or an import string cannot be one.
    """

    kind: ClassVar[Kind]

    name: str
    factory: str
    config: str | None = None
    summary: str = ""
    requirement: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise PluginError(
                f"{self.kind} name {self.name!r} cannot be used: "
                "write lower-case letters, digits and single dashes"
            )
        for field, value in (("factory", self.factory), ("config", self.config)):
            if value is not None and not _IMPORT_STRING.fullmatch(value):
                raise PluginError(
                    f"{self.kind} {self.name!r}: {field} {value!r} is no import string; "
                    "write 'package.module:Name'"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescriptor(Descriptor):
    """``factory(setup: EngineSetup, config)`` makes an ``Engine``.

    ``roles``: the legs it can run. ``connectors``: the KV connectors it speaks, the preferred one first.
    ``block_size_arg``: the field of its config that sets tokens per KV block, and
    ``default_block_size`` that field's default; both None for engines without paged KV.
    ``takes_kv_tiers``: it keeps blocks in ``EngineSetup.kv_tiers``.
    """

    kind: ClassVar[Kind] = Kind.ENGINE

    roles: tuple[Role, ...] = (Role.AGGREGATED,)
    connectors: tuple[str, ...] = ()
    block_size_arg: str | None = None
    default_block_size: int | None = None
    takes_kv_tiers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterDescriptor(Descriptor):
    """``factory(config)``, or ``factory()`` without a config model, makes a ``Router``."""

    kind: ClassVar[Kind] = Kind.ROUTER


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerDescriptor(Descriptor):
    """``factory(config)``, or ``factory()`` without a config model, makes a ``Planner``."""

    kind: ClassVar[Kind] = Kind.PLANNER


@dataclass(frozen=True, slots=True, kw_only=True)
class KVConnectorDescriptor(Descriptor):
    """``factory(config)``, or ``factory()`` without a config model, makes a ``KVConnector``.

    ``recuts_blocks``: it hands over between block sizes of which the larger is a multiple of the smaller."""

    kind: ClassVar[Kind] = Kind.KV_CONNECTOR

    recuts_blocks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KVStoreDescriptor(Descriptor):
    """``factory(config)``, or ``factory()`` without a config model, makes a ``KVStore``. Its config model has
    ``block_bytes``, which the engine says, and ``capacity_bytes``, unless it has no capacity.

    ``tier``: what KV events call it. ``folder_arg``: the field that names a folder; each worker gets one of
    its own in there. ``default_min_uses``: it is given only what so many requests asked for, unless the
    deploy file says otherwise; for media that wear out or cost by the write.
    """

    kind: ClassVar[Kind] = Kind.KV_STORE

    tier: KVTier = KVTier.REMOTE
    folder_arg: str | None = None
    default_min_uses: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherDescriptor(Descriptor):
    """``factory`` is a ``Launcher`` class, called as ``factory(plan, options)``."""

    kind: ClassVar[Kind] = Kind.LAUNCHER


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryDescriptor(Descriptor):
    """``factory`` is a ``Discovery`` class; how it is constructed is between it and its launcher."""

    kind: ClassVar[Kind] = Kind.DISCOVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDescriptor(Descriptor):
    """``factory`` is a function annotated for typer; ``dynamo-sdk NAME`` calls it."""

    kind: ClassVar[Kind] = Kind.COMMAND
