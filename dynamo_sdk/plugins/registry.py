"""The typed face of the plugin system: whoever wants to know what is installed asks a ``Registry``.

::

    entry points ──> plugins ──> inspection ──> hooks, called once ──> catalogues by name
                         └───────────┴──────────────────┴────────────> problems

A registry is a value. There is none at module level: ``Registry.discover()`` makes one, and whoever
needs it is handed it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import pluggy

from dynamo_sdk.errors import ConfigError, PluginError
from dynamo_sdk.interfaces import (
    Discovery,
    Engine,
    EngineSetup,
    KVConnector,
    KVStore,
    Launcher,
    Planner,
    Router,
)
from dynamo_sdk.types.plan import DeploymentPlan, Json

from . import builtins, hookspecs
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
from .entry_points import LoadedPlugin, installed_plugins
from .importing import import_object
from .inspection import inspect_plugin
from .markers import PROJECT
from .problems import Problem, Rule, Source, place_of_error, place_of_function, where_defined

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")

_INTERFACES: dict[Kind, type] = {
    Kind.ENGINE: Engine,
    Kind.ROUTER: Router,
    Kind.PLANNER: Planner,
    Kind.KV_CONNECTOR: KVConnector,
    Kind.KV_STORE: KVStore,
    Kind.LAUNCHER: Launcher,
    Kind.DISCOVERY: Discovery,
}


@dataclass(frozen=True, slots=True)
class Objection:
    """What a plugin says against a plan."""

    source: Source
    message: str

    def __str__(self) -> str:
        return f"{self.message} ({self.source})"


class Registry:
    """What is installed. Each hook of each plugin is called once, here.

    A broken plugin costs only what it alone would have offered: the rest works, and ``problems`` says
    what is wrong, in the order in which it was found.
    """

    def __init__(self, plugins: Iterable[LoadedPlugin], problems: Iterable[Problem] = ()) -> None:
        self._loaded = tuple(plugins)
        self._problems = list(problems)
        self._problems_of_loading = tuple(self._problems)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._sources: dict[str, Source] = {}
        for loaded in self._loaded:
            self._register(loaded)

        offers = {kind: list[tuple[Descriptor, Source]]() for kind in Kind}
        self._collect("dynamo_sdk_engines", EngineDescriptor, offers)
        self._collect("dynamo_sdk_routers", RouterDescriptor, offers)
        self._collect("dynamo_sdk_planners", PlannerDescriptor, offers)
        self._collect("dynamo_sdk_kv_connectors", KVConnectorDescriptor, offers)
        self._collect("dynamo_sdk_kv_stores", KVStoreDescriptor, offers)
        self._collect("dynamo_sdk_launchers", LauncherDescriptor, offers)
        self._collect("dynamo_sdk_discoveries", DiscoveryDescriptor, offers)
        self._collect("dynamo_sdk_commands", CommandDescriptor, offers)
        self._catalogues: dict[Kind, Catalogue[Any]] = {
            kind: Catalogue(kind, offers[kind], self._problems) for kind in Kind
        }
        self._report_doubles()

    @classmethod
    def discover(cls) -> Self:
        """Our built-ins and everything that the entry-point group ``dynamo_sdk`` offers."""
        plugins, problems = installed_plugins()
        return cls([_builtin_plugin(), *plugins], problems)

    @classmethod
    def of(cls, *plugins: object) -> Self:
        """Our built-ins and these modules or objects; for tests and notebooks."""
        return cls([_builtin_plugin(), *map(_local_plugin, plugins)])

    def including(self, *plugins: object) -> Self:
        """A registry of everything in this one and of these modules or objects, each of them once."""
        present = {id(loaded.plugin) for loaded in self._loaded}
        new = {id(plugin): plugin for plugin in plugins if id(plugin) not in present}.values()
        if not new:
            return self
        return type(self)([*self._loaded, *map(_local_plugin, new)], self._problems_of_loading)

    # What is there

    @property
    def engines(self) -> Catalogue[EngineDescriptor]:
        return self._catalogues[Kind.ENGINE]

    @property
    def routers(self) -> Catalogue[RouterDescriptor]:
        return self._catalogues[Kind.ROUTER]

    @property
    def planners(self) -> Catalogue[PlannerDescriptor]:
        return self._catalogues[Kind.PLANNER]

    @property
    def kv_connectors(self) -> Catalogue[KVConnectorDescriptor]:
        return self._catalogues[Kind.KV_CONNECTOR]

    @property
    def kv_stores(self) -> Catalogue[KVStoreDescriptor]:
        return self._catalogues[Kind.KV_STORE]

    @property
    def launchers(self) -> Catalogue[LauncherDescriptor]:
        return self._catalogues[Kind.LAUNCHER]

    @property
    def discoveries(self) -> Catalogue[DiscoveryDescriptor]:
        return self._catalogues[Kind.DISCOVERY]

    @property
    def commands(self) -> Catalogue[CommandDescriptor]:
        return self._catalogues[Kind.COMMAND]

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(self._problems)

    def problems_of(self, source: Source) -> tuple[Problem, ...]:
        """The problems of one plugin."""
        return tuple(problem for problem in self._problems if problem.source == source)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The plugins whose hooks were called."""
        return tuple(self._sources.values())

    def catalogue(self, kind: Kind) -> Catalogue[Descriptor]:
        """All of one kind, for whoever treats the kinds alike."""
        return self._catalogues[kind]

    # From a name to an object

    @overload
    def load(self, descriptor: EngineDescriptor) -> type[Engine]: ...
    @overload
    def load(self, descriptor: RouterDescriptor) -> type[Router]: ...
    @overload
    def load(self, descriptor: PlannerDescriptor) -> type[Planner]: ...
    @overload
    def load(self, descriptor: KVConnectorDescriptor) -> type[KVConnector]: ...
    @overload
    def load(self, descriptor: KVStoreDescriptor) -> type[KVStore]: ...
    @overload
    def load(self, descriptor: LauncherDescriptor) -> type[Launcher]: ...
    @overload
    def load(self, descriptor: DiscoveryDescriptor) -> type[Discovery]: ...
    def load(self, descriptor: Descriptor) -> type:
        """Import the factory: a complete subclass of the kind's interface. Raises ``PluginError``."""
        what = f"{descriptor.kind} {descriptor.name!r}"
        found = import_object(descriptor.factory, what=what, requirement=descriptor.requirement)
        interface = _INTERFACES[descriptor.kind]
        if not (isinstance(found, type) and issubclass(found, interface)):
            raise PluginError(
                f"{what}: {descriptor.factory} is no subclass of {interface.__name__}{where_defined(found)}"
            )
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise PluginError(
                f"{what}: {descriptor.factory} does not implement {', '.join(missing)}{where_defined(found)}"
            )
        return found

    def load_command(self, descriptor: CommandDescriptor) -> Any:
        """Import a command's function. Raises ``PluginError``."""
        what = f"command {descriptor.name!r}"
        found = import_object(descriptor.factory, what=what, requirement=descriptor.requirement)
        if not callable(found):
            raise PluginError(f"{what}: {descriptor.factory} cannot be called")
        return found

    def load_config(self, descriptor: Descriptor) -> type[BaseModel] | None:
        """Import the pydantic model of the ``args``; None when there are none. Raises ``PluginError``."""
        if descriptor.config is None:
            return None
        from pydantic import BaseModel

        what = f"{descriptor.kind} {descriptor.name!r}"
        found = import_object(descriptor.config, what=what, requirement=descriptor.requirement)
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            raise PluginError(f"{what}: {descriptor.config} is no pydantic model")
        return found

    def validate(
        self, descriptor: Descriptor, args: dict[str, Json], *, where: str | None = None
    ) -> BaseModel | None:
        """``args`` as an instance of the config model. ``where``: their path in the deploy file.

        Raises ``ConfigError`` that names each wrong field, what was expected and the nearest valid name.
        """
        model = self.load_config(descriptor)
        path = where or f"{descriptor.kind}.args"
        if model is None:
            if args:
                raise ConfigError(
                    f"{descriptor.kind} {descriptor.name!r} takes no arguments; "
                    f"remove {path} ({', '.join(args)})"
                )
            return None
        from .config import validated

        return validated(model, args, where=path)

    def build_engine(self, name: str, setup: EngineSetup, args: dict[str, Json] | None = None) -> Engine:
        """The engine, not yet started. Raises ``ConfigError`` or ``PluginError``."""
        descriptor = self.engines.require(name)
        config = self.validate(descriptor, args or {})
        factory: Callable[..., Engine] = self.load(descriptor)
        return _called(factory, descriptor, setup, config)

    def build_router(self, name: str, args: dict[str, Json] | None = None) -> Router:
        """A router of one's own. Raises ``ConfigError`` or ``PluginError``."""
        descriptor = self.routers.require(name)
        return self._construct(self.load(descriptor), descriptor, args)

    def build_planner(self, name: str, args: dict[str, Json] | None = None) -> Planner:
        """A planner of one's own. Raises ``ConfigError`` or ``PluginError``."""
        descriptor = self.planners.require(name)
        return self._construct(self.load(descriptor), descriptor, args)

    def build_kv_connector(self, name: str, args: dict[str, Json] | None = None) -> KVConnector:
        """A connector of one's own. Raises ``ConfigError`` or ``PluginError``."""
        descriptor = self.kv_connectors.require(name)
        return self._construct(self.load(descriptor), descriptor, args)

    def build_kv_store(self, name: str, args: dict[str, Json] | None = None) -> KVStore:
        """A store, not yet started. Raises ``ConfigError`` or ``PluginError``."""
        descriptor = self.kv_stores.require(name)
        return self._construct(self.load(descriptor), descriptor, args)

    def check_plan(self, plan: DeploymentPlan) -> tuple[Objection, ...]:
        """What the plugins say against ``plan``. A check that raises is an objection too."""
        objections: list[Objection] = []
        for hook, source in self._implementations("dynamo_sdk_check_plan"):
            arguments = [plan] if hook.argnames else []
            try:
                messages = _listed(hook.function(*arguments), str)
            except Exception as error:
                messages = [f"its dynamo_sdk_check_plan raised {type(error).__name__}: {error}"]
            objections += [Objection(source, message) for message in messages]
        return tuple(objections)

    # How it is gathered

    def _register(self, loaded: LoadedPlugin) -> None:
        found = list(inspect_plugin(loaded.plugin, loaded.source))
        self._problems += found
        if any(problem.rule is Rule.HOOK_SIGNATURE for problem in found):
            return
        key = f"{loaded.source.distribution}:{loaded.source.plugin}:{len(self._sources)}"
        try:
            self._manager.register(loaded.plugin, name=key)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.get_plugin(key) is loaded.plugin:
                self._manager.unregister(name=key)
            self._problems.append(
                Problem(source=loaded.source, rule=Rule.HOOK_SIGNATURE, message=str(error), is_fatal=True)
            )
        else:
            self._sources[key] = loaded.source

    def _implementations(self, hook: str) -> list[tuple[pluggy.HookImpl, Source]]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return [(impl, self._sources[impl.plugin_name]) for impl in caller.get_hookimpls()]

    def _collect(
        self, hook: str, expected: type[Descriptor], offers: dict[Kind, list[tuple[Descriptor, Source]]]
    ) -> None:
        for impl, source in self._implementations(hook):
            try:
                listed = _listed(impl.function(), expected)
            except _WrongResult as error:
                rule, message = Rule.HOOK_RESULT, f"{hook} {error}"
                file, line = place_of_function(impl.function)
            except Exception as error:
                rule, message = Rule.HOOK_RETURNS, f"{hook} raised {type(error).__name__}: {error}"
                file, line = place_of_error(error)
            else:
                offers[expected.kind] += [(descriptor, source) for descriptor in listed]
                continue
            self._problems.append(
                Problem(source=source, rule=rule, message=message, file=file, line=line, is_fatal=True)
            )

    def _report_doubles(self) -> None:
        for kind, catalogue in self._catalogues.items():
            for name, owners in catalogue.doubled().items():
                for source in owners:
                    others = " and ".join(str(other) for other in owners if other is not source) or "itself"
                    self._problems.append(
                        Problem(
                            source=source,
                            rule=Rule.NAME_UNIQUE,
                            message=f"{kind} {name!r} is also offered by {others}; uninstall one of them",
                        )
                    )

    def _construct(self, cls: type[T], descriptor: Descriptor, args: dict[str, Json] | None) -> T:
        config = self.validate(descriptor, args or {})
        factory: Callable[..., T] = cls
        return _called(factory, descriptor) if config is None else _called(factory, descriptor, config)


def _called(factory: Callable[..., T], descriptor: Descriptor, *arguments: object) -> T:
    """The factory's object. A factory that does not take these arguments is a ``PluginError``; what it raises
    itself goes through."""
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError as error:
        shape = ", ".join(["setup", "config"][-len(arguments) :] if arguments else [])
        raise PluginError(
            f"{descriptor.kind} {descriptor.name!r}: {descriptor.factory} is called as factory({shape}), and "
            f"that does not fit: {error}{where_defined(factory)}"
        ) from error
    except ValueError:  # written in C, without a signature
        pass
    return factory(*arguments)


class _WrongResult(TypeError):
    """A hook returned something else than a list of its items."""


def _listed(result: object, expected: type[T]) -> list[T]:
    if not isinstance(result, Iterable) or isinstance(result, str | bytes | dict):
        raise _WrongResult(f"returned {type(result).__name__}; return a list of {expected.__name__}")
    items: Sequence[object] = list(result)
    for item in items:
        if not isinstance(item, expected):
            raise _WrongResult(f"returned a list with {type(item).__name__} in it, not {expected.__name__}")
    return [item for item in items if isinstance(item, expected)]


def _builtin_plugin() -> LoadedPlugin:
    own = Source(plugin="builtins", distribution="dynamo-sdk", version=metadata.version("dynamo-sdk"))
    return LoadedPlugin(own, builtins)


def _local_plugin(plugin: object) -> LoadedPlugin:
    return LoadedPlugin(Source(plugin=_plugin_name(plugin), distribution="local", version="0"), plugin)


def _plugin_name(plugin: object) -> str:
    if inspect.ismodule(plugin) or isinstance(plugin, type):
        return plugin.__name__
    return type(plugin).__name__
