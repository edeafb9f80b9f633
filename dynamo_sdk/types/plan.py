"""A compiled deployment: data only, the same bytes for the same input."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from .kv_transfer import TransferSettings
from .models import LoraSpec, ModelSpec
from .requests import Role

if TYPE_CHECKING:
    Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
else:
    Json = Any  # msgspec decodes no recursive alias; what it decodes as Any is JSON all the same


class Origin(StrEnum):
    """Where a value comes from; later ones win."""

    DEFAULT = "default"
    PLUGIN = "plugin"
    GRAPH = "graph"
    DEPLOY = "deploy file"
    COMMAND = "command line"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One value that ``plan`` shows, by its path in the deploy file (``services.Decode.replicas``)."""

    path: str
    value: Json
    origin: Origin


class GpuDevice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``id`` as ``CUDA_VISIBLE_DEVICES`` spells it: an index or a UUID."""

    id: str
    name: str = ""
    memory_bytes: int = 0


class HostInventory(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    num_cpus: int
    gpus: tuple[GpuDevice, ...] = ()


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    hosts: tuple[HostInventory, ...]


class ReplicaPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One process. ``gpu_ids`` are its own, on ``host``."""

    index: int
    host: str
    gpu_ids: tuple[str, ...] = ()


class EdgePlan(msgspec.Struct, frozen=True, kw_only=True):
    """``attribute`` of the calling class that ``depends`` on ``service``."""

    attribute: str
    service: str


class PluginChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A plugin by name, and its validated arguments."""

    name: str
    args: dict[str, Json] = {}


class KVTierPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A cache tier below the device, of each worker. ``kind``: the KV store; ``args``: the store's own,
    validated; ``capacity_bytes`` is among them where the store has one.

    ``min_uses``: only what so many requests asked for of late is written to it; ``min_priority``: only what
    requests of at least this priority computed (higher matters more); None = all of it.
    """

    name: str
    kind: str
    capacity_bytes: int | None = None
    args: dict[str, Json] = {}
    min_uses: int = 0
    min_priority: int | None = None


class ServicePlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service. ``factory`` is the class's import string. Engine fields are empty for services
    without an engine. ``python`` = interpreter of another environment, None = ours."""

    name: str
    factory: str
    edges: tuple[EdgePlan, ...] = ()
    replicas: tuple[ReplicaPlan, ...] = ()
    gpus_per_replica: int = 0
    cpus_per_replica: int | None = None
    role: Role | None = None
    engine: PluginChoice | None = None
    model: str | None = None
    connector: str | None = None
    transfer: TransferSettings | None = None
    python: str | None = None
    is_frontend: bool = False
    args: dict[str, Json] = {}


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One served model, its adapters, and the policies of its requests. ``kv_tiers``: of each worker, fastest
    first."""

    spec: ModelSpec
    router: PluginChoice
    connector: str | None = None
    loras: tuple[LoraSpec, ...] = ()
    kv_tiers: tuple[KVTierPlan, ...] = ()


class DeploymentPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``target`` is what ``run`` was given; a replica's process imports the classes from it.
    ``services`` are in start order: a service comes after those it depends on."""

    target: str
    services: tuple[ServicePlan, ...]
    models: tuple[ModelPlan, ...]
    settings: tuple[Setting, ...] = ()
    planner: PluginChoice | None = None

    def service(self, name: str) -> ServicePlan:
        """The service of this name; ``KeyError`` if there is none."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)
