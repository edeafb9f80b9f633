"""Every value of a deployment, decided: which model, which plugins, which numbers for which service.

Names and arguments are checked against what is installed as they are chosen; how the chosen parts fit
together is the next stage's question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import msgspec
from pydantic import JsonValue

from dynamo_sdk.errors import ConfigError, GraphError
from dynamo_sdk.plugins import Catalogue, Descriptor, Kind, Registry
from dynamo_sdk.types import LoraSpec, ModelSpec, Role, TransferSettings
from dynamo_sdk.types.plan import Json, KVTierPlan, Origin, PluginChoice

from .deploy import (
    Deploy,
    KVSection,
    ModelEntry,
    ModelSection,
    PolicySection,
    Problems,
    ServiceSection,
)
from .graph import Graph, ServiceNode
from .kv_tiers import choose_tiers
from .markers import EngineService
from .nearest import suggest
from .pairing import AUTO, Leg
from .paths import Path, format_path
from .plugin_args import check_constructor_args, check_plugin_args
from .settings import SettingsLog

D = TypeVar("D", bound=Descriptor)

DEFAULT_ENGINE = "torch"
DEFAULT_MODEL = "demo"
DEFAULT_ROUTER = "round-robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenModel:
    """A model and the policies of its requests. ``connector`` is as wanted, perhaps ``auto``, and was
    written at ``connector_path``; ``tiers`` at ``tiers_path``."""

    spec: ModelSpec
    path: Path
    router: PluginChoice
    connector: str
    connector_path: Path
    tiers: tuple[KVTierPlan, ...]
    tiers_path: Path
    transfer: TransferSettings | None
    loras: tuple[LoraSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenService:
    """One service with every value decided but its place. ``leg``: only of engine services."""

    node: ServiceNode
    section: ServiceSection
    num_replicas: int
    gpus_per_replica: int
    leg: Leg | None

    @property
    def args(self) -> dict[str, Json]:
        return cast(dict[str, Json], dict(self.section.args))


class Chooser:
    """Decides from ``Graph(...)``, the deploy file and the defaults; what is wrong goes to ``problems``."""

    def __init__(
        self, graph: Graph, deploy: Deploy, registry: Registry, log: SettingsLog, problems: Problems
    ) -> None:
        self._graph = graph
        self._file = deploy.file
        self._registry = registry
        self._log = log
        self._problems = problems

    def choose_models(self) -> list[ChosenModel]:
        """The models of the deploy file, or the default one."""
        file, log = self._file, self._log
        named: list[tuple[str, Path, ModelEntry]] = []
        if file.models:
            for name, entry in file.models.items():
                log.record_written(("models", name, "path"), entry.path)
                named.append((name, ("models", name), entry))
        else:
            entry = file.model or ModelSection(path=DEFAULT_MODEL)
            written = file.model.path if file.model else None
            folder = log.pick(("model", "path"), written=written, default=entry.path)
            name = log.pick(("model", "name"), written=entry.name, default=_name_of(folder))
            named.append((name, ("model",), entry))
        router = self._choose_policy(Kind.ROUTER, (), file.router, self._graph.router, DEFAULT_ROUTER)
        connector = self._choose_connector((), file.kv, self._graph.connector)
        tiers = self._choose_tiers((), file.kv)
        transfer = self._choose_transfer((), file.kv, None)
        taken = {name: f"model {name!r}" for name, _, _ in named}
        return [
            ChosenModel(
                spec=ModelSpec(name=name, path=entry.path),
                path=path,
                router=self._choose_named_policy(Kind.ROUTER, path, entry.router) or router
                if entry.router
                else router,
                connector=self._choose_connector(path, entry.kv, None) if entry.kv.connector else connector,
                connector_path=(*(path if entry.kv.connector else ()), "kv", "connector"),
                tiers=tiers if entry.kv.tiers is None else self._choose_tiers(path, entry.kv),
                tiers_path=(*(() if entry.kv.tiers is None else path), "kv", "tiers"),
                transfer=self._choose_transfer(path, entry.kv, transfer),
                loras=self._choose_loras(path, entry, taken),
            )
            for name, path, entry in named
        ]

    def _choose_transfer(
        self, above: Path, section: KVSection, default: TransferSettings | None
    ) -> TransferSettings | None:
        """What it does not say is ``default``."""
        written = section.transfer
        values = {
            name: value
            for name in type(written).model_fields
            if (value := getattr(written, name)) is not None
        }
        for name, value in values.items():
            self._log.record_written((*above, "kv", "transfer", name), value)
        return msgspec.structs.replace(default or TransferSettings(), **values) if values else default

    def _choose_loras(self, above: Path, entry: ModelEntry, taken: dict[str, str]) -> tuple[LoraSpec, ...]:
        """The adapters of one model. ``taken``: what clients already mean by a name."""
        for name, folder in entry.loras.items():
            path: Path = (*above, "loras", name)
            if name in taken:
                self._problems.add(path, f"clients mean {taken[name]} by this name; give the adapter another")
            taken.setdefault(name, f"an adapter of {format_path(above)}")
            self._log.record_written(path, folder)
        return tuple(LoraSpec(name=name, path=folder) for name, folder in entry.loras.items())

    def choose_planner(self) -> PluginChoice | None:
        """The planner, where one is named. Replica counts stay as they are without one."""
        return self._choose_named_policy(Kind.PLANNER, (), self._file.planner, self._graph.planner)

    def choose_service(self, node: ServiceNode, models: Sequence[ChosenModel]) -> ChosenService:
        """Everything about one service. Raises ``GraphError`` for a role that is none."""
        section = self._file.services.get(node.name, ServiceSection())
        path: Path = ("services", node.name)
        is_engine = issubclass(node.cls, EngineService)
        leg = self._choose_leg(node, section, models) if is_engine else None
        num_replicas = self._log.pick((*path, "replicas"), written=section.replicas, default=1)
        gpus = self._log.pick((*path, "gpus"), written=section.gpus, default=0)
        self._log.record_written((*path, "cpus"), section.cpus)
        self._log.record_written((*path, "python"), section.python)
        if leg is not None:
            self._check_args(leg.engine, section.args, path, is_elsewhere=section.python is not None)
        elif not is_engine:
            for key in ("engine", "model"):
                if getattr(section, key) is not None:
                    message = f"{node.name} runs no engine (its class is no worker); remove the key"
                    self._problems.add((*path, key), message)
            where: Path = (*path, "args")
            defaults = check_constructor_args(node.cls, section.args, where, self._problems)
            self._log.record_args(where, section.args, defaults, Origin.DEFAULT)
        return ChosenService(
            node=node, section=section, num_replicas=num_replicas, gpus_per_replica=gpus, leg=leg
        )

    def _choose_leg(
        self, node: ServiceNode, section: ServiceSection, models: Sequence[ChosenModel]
    ) -> Leg | None:
        path: Path = ("services", node.name)
        role = getattr(node.cls, "role", None)
        if not isinstance(role, Role):
            options = ", ".join(f"Role.{member.name}" for member in Role)
            raise GraphError(f"{node.name}.role is {role!r}; set it to one of {options}")
        name = self._log.pick((*path, "engine"), written=section.engine, default=DEFAULT_ENGINE)
        model = self._choose_model_of(node, section, models)
        engine = self._require(self._registry.engines, name, (*path, "engine"))
        if engine is None or model is None:
            return None
        if role not in engine.roles:
            able = [other for other, known in self._registry.engines.items() if role in known.roles]
            self._problems.add(
                (*path, "engine"),
                f"engine {name!r} cannot run the {role} role of {node.name} (it can: "
                f"{', '.join(engine.roles)}); engines that can: {', '.join(able) or 'none'}",
            )
        return Leg(service=node.name, role=role, model=model, engine=engine, args=section.args)

    def _choose_model_of(
        self, node: ServiceNode, section: ServiceSection, models: Sequence[ChosenModel]
    ) -> str | None:
        names = [model.spec.name for model in models]
        path: Path = ("services", node.name, "model")
        if section.model is None and len(names) > 1:
            self._problems.add(path, f"is missing; several models are served, name one of {', '.join(names)}")
            return None
        name = self._log.pick(path, written=section.model, default=names[0])
        if name not in names:
            self._problems.add(path, f"no model {name!r}{suggest(name, names, noun='models')}")
            return None
        return name

    def _choose_named_policy(
        self, kind: Kind, above: Path, section: PolicySection, in_graph: str | None = None
    ) -> PluginChoice | None:
        """A policy without a default: None where nobody names one."""
        if section.name is None and in_graph is None:
            if section.args:
                names = ", ".join(self._registry.catalogue(kind)) or "none"
                self._problems.add((*above, str(kind)), f"has args but no name (installed: {names})")
            return None
        return self._choose_policy(kind, above, section, in_graph, "")

    def _choose_policy(
        self, kind: Kind, above: Path, section: PolicySection, in_graph: str | None, default: str
    ) -> PluginChoice:
        path: Path = (*above, str(kind))
        name = self._log.pick((*path, "name"), written=section.name, graph=in_graph, default=default)
        descriptor = self._require(self._registry.catalogue(kind), name, (*path, "name"))
        if descriptor is not None:
            self._check_args(descriptor, section.args, path)
        return PluginChoice(name=name, args=cast(dict[str, Json], dict(section.args)))

    def _choose_connector(self, above: Path, section: KVSection, in_graph: str | None) -> str:
        path: Path = (*above, "kv", "connector")
        return self._log.pick(path, written=section.connector, graph=in_graph, default=AUTO)

    def _choose_tiers(self, above: Path, section: KVSection) -> tuple[KVTierPlan, ...]:
        return choose_tiers(section, above, self._registry, self._log, self._problems)

    def _check_args(
        self,
        descriptor: Descriptor,
        args: Mapping[str, JsonValue],
        above: Path,
        *,
        is_elsewhere: bool = False,
    ) -> None:
        """An engine of another environment checks its arguments there; ours are checked now."""
        path: Path = (*above, "args")
        defaults: dict[str, Json] = {}
        if not is_elsewhere:
            defaults = check_plugin_args(self._registry, descriptor, args, path, self._problems)
        self._log.record_args(path, args, defaults, Origin.PLUGIN)

    def _require(self, catalogue: Catalogue[D], name: str, path: Path) -> D | None:
        try:
            return catalogue.require(name)
        except ConfigError as error:
            self._problems.add(path, error.message)
            return None


def _name_of(path: str) -> str:
    """What clients call a model that nobody named: the folder's name, or the whole Hugging Face id."""
    is_folder = path.startswith((".", "/", "~"))
    return path.rstrip("/").rpartition("/")[2] or path if is_folder else path
