from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from dynamo_sdk.errors import ConfigError, PluginError
from dynamo_sdk.interfaces import EngineSetup, KVConnector, Router, RoutingDecision
from dynamo_sdk.plugins import (
    EngineDescriptor,
    Kind,
    KVConnectorDescriptor,
    Registry,
    RouterDescriptor,
    Rule,
    hookimpl,
    import_object,
)
from dynamo_sdk.plugins.known_distributions import DISTRIBUTIONS
from dynamo_sdk.routing import policies
from dynamo_sdk.types import ModelSpec, Role

REPOSITORY = Path(__file__).parents[2]
SETUP = EngineSetup(model=ModelSpec(name="m", path="."), role=Role.AGGREGATED)


def test_builtins_come_through_the_hooks() -> None:
    registry = Registry.of()
    assert registry.problems == ()
    assert list(registry.engines) == ["echo", "mocker", "openai", "torch"]
    assert list(registry.routers) == [
        "direct",
        "dynamo-kv",
        "kv",
        "least-loaded",
        "power-of-two",
        "random",
        "round-robin",
        "session",
        "shadow",
    ]
    assert list(registry.launchers) == ["inprocess", "local"]
    assert {
        registry.catalogue(kind).source(name) for kind in Kind for name in registry.catalogue(kind)
    } == set(registry.sources)


@pytest.mark.parametrize("name", Registry.of().routers)
def test_every_builtin_router_can_be_built(name: str) -> None:
    assert isinstance(Registry.of().build_router(name), Router)


def test_every_connector_that_an_engine_speaks_is_installed() -> None:
    registry = Registry.of()
    for engine in registry.engines.values():
        assert set(engine.connectors) <= set(registry.kv_connectors)


def test_an_engine_gets_setup_and_config() -> None:
    engine = Registry.of().build_engine("echo", SETUP, {"delay_ms": 2})
    assert engine.load() is not None


def test_a_connector_needs_no_config() -> None:
    assert isinstance(Registry.of().build_kv_connector("stateless"), KVConnector)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"waiting_wait": 1}, "router.args.waiting_wait: unknown argument; did you mean 'waiting_weight'?"),
        ({"zzz": 1}, "router.args.zzz: unknown argument (known: max_load_age_s, waiting_weight)"),
        (
            {"waiting_weight": -1},
            "router.args.waiting_weight: Input should be greater than or equal to 0, got -1",
        ),
    ],
)
def test_wrong_arguments_are_named(args: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Registry.of().build_router("least-loaded", dict(args))
    assert str(caught.value) == message


def test_each_wrong_argument_has_its_line_and_its_place() -> None:
    registry = Registry.of()
    with pytest.raises(ConfigError) as caught:
        registry.validate(
            registry.engines["echo"], {"delay": 1, "context_length": 1}, where="services.Decode.args"
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("services.Decode.args.") for line in lines)


def test_arguments_for_what_takes_none() -> None:
    with pytest.raises(
        ConfigError, match=r"router 'random' takes no arguments; remove router.args \(weight\)"
    ):
        Registry.of().build_router("random", {"weight": 1})


class NotARouter:
    pass


class Unfinished(KVConnector):
    pass


class Offers:
    """A plugin need not be a module; any object with marked methods is one."""

    @hookimpl
    def dynamo_sdk_routers(self) -> list[RouterDescriptor]:
        here = "tests.plugins.test_registry"
        return [
            RouterDescriptor(name="wrong-class", factory=f"{here}:NotARouter"),
            RouterDescriptor(name="typo", factory="dynamo_sdk.routing.policies:RandomRouterr"),
            RouterDescriptor(name="no-module", factory="acme_is_not_there:Router", requirement="acme[gpu]"),
            RouterDescriptor(
                name="no-model",
                factory="dynamo_sdk.routing.policies:RandomRouter",
                config=f"{here}:NotARouter",
            ),
        ]

    @hookimpl
    def dynamo_sdk_kv_connectors(self) -> list[KVConnectorDescriptor]:
        return [KVConnectorDescriptor(name="unfinished", factory="tests.plugins.test_registry:Unfinished")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong-class", "tests.plugins.test_registry:NotARouter is no subclass of Router"),
        ("typo", f"RandomRouterr does not exist; did you mean 'RandomRouter'? ({policies.__file__})"),
        (
            "no-module",
            "router 'no-module' needs the module 'acme_is_not_there', which is not installed; "
            "try: pip install 'acme[gpu]'",
        ),
        ("no-model", "NotARouter is no pydantic model"),
    ],
)
def test_a_factory_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry.of(Offers()).build_router(name)
    assert message in str(caught.value)


def test_an_unfinished_class_names_what_it_lacks() -> None:
    with pytest.raises(PluginError, match="does not implement decode_ticket"):
        Registry.of(Offers()).build_kv_connector("unfinished")


class TakesNothing(Router):
    def __init__(self) -> None: ...

    def select(self, *_: object) -> RoutingDecision:
        raise NotImplementedError


class TakesNothingConfig(BaseModel): ...


class Misfit:
    @hookimpl
    def dynamo_sdk_routers(self) -> list[RouterDescriptor]:
        here = "tests.plugins.test_registry"
        return [
            RouterDescriptor(
                name="misfit", factory=f"{here}:TakesNothing", config=f"{here}:TakesNothingConfig"
            )
        ]


@pytest.mark.parametrize(
    ("plugin", "name", "message"),
    [
        (Offers(), "wrong-class", "NotARouter is no subclass of Router"),
        (Misfit(), "misfit", "is called as factory(config), and that does not fit: too many positional"),
    ],
)
def test_a_class_that_does_not_fit_is_placed(plugin: object, name: str, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry.of(plugin).build_router(name)
    assert message in str(caught.value)
    assert re.search(rf" \({re.escape(__file__)}:\d+\)$", str(caught.value))


def test_a_module_that_fails_is_placed_at_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "acme_broken.py"
    file.write_text("x = 1\ny = x / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=rf"ZeroDivisionError: .* \({re.escape(str(file))}:2\)$"):
        import_object("acme_broken:Router", what="router 'broken'")


def test_near_miss_of_a_name() -> None:
    with pytest.raises(
        ConfigError,
        match=r"no engine 'tirch' \(installed: echo, mocker, openai, torch\); did you mean 'torch'",
    ):
        Registry.of().engines.require("tirch")
    with pytest.raises(ConfigError, match=r"no planner 'sla' \(installed: none\)"):
        Registry.of().planners.require("sla")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_engine_of_a_plugin_that_is_not_installed_says_what_to_install(name: str) -> None:
    distribution, folder = DISTRIBUTIONS[name]
    with pytest.raises(ConfigError) as caught:
        Registry.of().engines.require(name)
    assert caught.value.message.endswith(
        f"; try: pip install {distribution} (in a checkout: pip install ./{folder})"
    )
    with pytest.raises(ConfigError, match=r"write one \(docs/plugins.md\)$"):
        Registry.of().routers.require(name)


def test_what_to_install_is_what_the_plugins_of_this_repository_offer() -> None:
    offered = {}
    for folder in sorted(path.parent for path in (REPOSITORY / "plugins").glob("*/pyproject.toml")):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        (module,) = project["entry-points"]["dynamo_sdk"].values()
        plugin = runpy.run_path(str(folder / f"{module.replace('.', '/')}.py"))
        for engine in plugin["dynamo_sdk_engines"]():
            offered[engine.name] = (project["name"], folder.relative_to(REPOSITORY).as_posix())
    assert offered == DISTRIBUTIONS


def test_hooks_are_called_once() -> None:
    calls = []

    class Counting:
        @hookimpl
        def dynamo_sdk_engines(self) -> list[EngineDescriptor]:
            calls.append(1)
            return []

    registry = Registry.of(Counting())
    for _ in range(3):
        list(registry.engines)
        registry.engines.get("x")
    assert calls == [1]


def test_a_registry_including_more_offers_both_and_each_once() -> None:
    class Acme:
        @hookimpl
        def dynamo_sdk_engines(self) -> list[EngineDescriptor]:
            return [EngineDescriptor(name="acme", factory="a:B")]

    acme = Acme()
    before = Registry.of()
    after = before.including(acme, acme)
    assert "acme" not in before.engines
    assert {"acme", "echo"} <= after.engines.keys()
    assert after.including(acme) is after
    assert after.problems == ()


def test_a_catalogue_is_a_read_only_mapping() -> None:
    engines = Registry.of().engines
    assert engines["echo"].roles == tuple(Role)
    assert dict(engines).keys() == {"echo", "mocker", "openai", "torch"}
    with pytest.raises(KeyError):
        engines["nope"]
    with pytest.raises(TypeError):
        engines["echo"] = engines["torch"]  # type: ignore[index]


def test_one_plugin_that_doubles_its_own_name() -> None:
    class Twice:
        @hookimpl
        def dynamo_sdk_engines(self) -> list[EngineDescriptor]:
            return [EngineDescriptor(name="twin", factory="a:B")] * 2

    registry = Registry.of(Twice())
    assert {problem.rule for problem in registry.problems} == {Rule.NAME_UNIQUE}
    assert "twin" not in registry.engines


def test_config_models_are_pydantic() -> None:
    registry = Registry.of()
    model = registry.load_config(registry.engines["echo"])
    assert model is not None
    assert issubclass(model, BaseModel)
    assert registry.load_config(registry.routers["random"]) is None


def test_discovery_imports_nothing_heavy() -> None:
    """Descriptors are data: listing them loads neither an engine nor a validator nor an event loop."""
    heavy = [
        "asyncio",
        "anyio",
        "pydantic",
        "torch",
        "typer",
        "rich",
        "dynamo_sdk.engines",
        "dynamo_sdk.routing",
    ]
    code = (
        "import sys; from dynamo_sdk.plugins import Registry; Registry.of();"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
