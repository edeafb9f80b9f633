"""Each way in which a plugin can be broken: it is reported by name, and costs nobody else anything."""

from __future__ import annotations

import pytest

from dynamo_sdk.errors import ConfigError, PluginError
from dynamo_sdk.plugins import Problem, Registry, Rule

from .conftest import Install

GOOD = """
    from dynamo_sdk.plugins import EngineDescriptor, hookimpl

    @hookimpl
    def dynamo_sdk_engines():
        return [EngineDescriptor(name="{name}", factory="acme.engine:Engine")]
"""


def only_problem(registry: Registry) -> Problem:
    (problem,) = registry.problems
    return problem


def test_a_good_plugin_has_no_problem(install: Install) -> None:
    install("acme-sdk", "acme", GOOD.format(name="acme"), version="2.1")
    registry = Registry.discover()
    assert registry.problems == ()
    assert str(registry.engines.source("acme")) == "plugin 'acme' of acme-sdk 2.1"
    assert "echo" in registry.engines


def test_import_error_names_the_line(install: Install) -> None:
    file = install("acme-sdk", "acme", "import sys\n\nimport module_that_is_not_there\n")
    install("good-sdk", "good", GOOD.format(name="good"))
    registry = Registry.discover()
    problem = only_problem(registry)
    assert problem.rule is Rule.IMPORTABLE
    assert (problem.file, problem.line) == (str(file), 3)
    assert problem.source.distribution == "acme-sdk"
    assert "module_that_is_not_there" in problem.message
    assert "good" in registry.engines


def test_syntax_error_names_the_line(install: Install) -> None:
    file = install("acme-sdk", "acme", "x = 1\ndef broken(:\n")
    problem = only_problem(Registry.discover())
    assert (problem.rule, problem.file, problem.line) == (Rule.IMPORTABLE, str(file), 2)


def test_exit_at_import_is_only_a_problem(install: Install) -> None:
    install("acme-sdk", "acme", "raise SystemExit(3)")
    assert "SystemExit: 3" in only_problem(Registry.discover()).message


def test_an_entry_point_that_names_nothing(install: Install) -> None:
    install("acme-sdk", "acme", value="no_such_module_anywhere")
    problem = only_problem(Registry.discover())
    assert problem.rule is Rule.IMPORTABLE
    assert problem.file is None
    assert "no_such_module_anywhere" in problem.message


def test_hook_that_raises_names_the_line_that_raised(install: Install) -> None:
    file = install(
        "acme-sdk",
        "acme",
        """\
        from dynamo_sdk.plugins import hookimpl

        @hookimpl
        def dynamo_sdk_routers():
            return inner()

        def inner():
            raise RuntimeError("no licence")
        """,
    )
    problem = only_problem(Registry.discover())
    assert problem.rule is Rule.HOOK_RETURNS
    assert problem.message == "dynamo_sdk_routers raised RuntimeError: no licence"
    assert (problem.file, problem.line) == (str(file), 8)


def test_an_invalid_descriptor_is_found_in_the_plugin(install: Install) -> None:
    file = install("acme-sdk", "acme", GOOD.format(name="Not A Name"))
    problem = only_problem(Registry.discover())
    assert problem.rule is Rule.HOOK_RETURNS
    assert "'Not A Name'" in problem.message
    assert (problem.file, problem.line) == (str(file), 6)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("None", "returned NoneType; return a list of EngineDescriptor"),
        ("'torch'", "returned str; return a list of EngineDescriptor"),
        ("EngineDescriptor(name='x', factory='a:B')", "returned EngineDescriptor; return a list"),
        ("[RouterDescriptor(name='x', factory='a:B')]", "with RouterDescriptor in it, not EngineDescriptor"),
    ],
)
def test_hook_that_returns_something_else(install: Install, result: str, message: str) -> None:
    file = install(
        "acme-sdk",
        "acme",
        f"""\
        from dynamo_sdk.plugins import EngineDescriptor, RouterDescriptor, hookimpl

        @hookimpl
        def dynamo_sdk_engines():
            return {result}

        @hookimpl
        def dynamo_sdk_routers():
            return [RouterDescriptor(name="acme", factory="a:B")]
        """,
    )
    registry = Registry.discover()
    problem = only_problem(registry)
    assert problem.rule is Rule.HOOK_RESULT
    assert message in problem.message
    assert (problem.file, problem.line) == (str(file), 3)
    assert "acme" in registry.routers


def test_misspelt_hook_names_the_nearest(install: Install) -> None:
    file = install(
        "acme-sdk",
        "acme",
        """\
        from dynamo_sdk.plugins import hookimpl

        @hookimpl
        def dynamo_sdk_engine():
            return []
        """,
    )
    problem = only_problem(Registry.discover())
    assert problem.rule is Rule.HOOK_KNOWN
    assert problem.message == "there is no hook dynamo_sdk_engine; did you mean dynamo_sdk_engines?"
    assert (problem.file, problem.line) == (str(file), 3)


def test_unmarked_hook_is_reported(install: Install) -> None:
    install("acme-sdk", "acme", "def dynamo_sdk_engines():\n    return []\n")
    problem = only_problem(Registry.discover())
    assert problem.rule is Rule.HOOK_MARKED
    assert problem.line == 1


@pytest.mark.parametrize(
    ("marker", "signature", "message"),
    [
        (
            "hookimpl",
            "dynamo_sdk_check_plan(plan, colour)",
            "takes colour; write dynamo_sdk_check_plan(plan)",
        ),
        ("hookimpl", "dynamo_sdk_engines(config)", "takes config; write dynamo_sdk_engines()"),
        ("hookimpl(wrapper=True)", "dynamo_sdk_engines()", "marked as a wrapper"),
    ],
)
def test_wrong_signature(install: Install, marker: str, signature: str, message: str) -> None:
    install(
        "acme-sdk",
        "acme",
        f"from dynamo_sdk.plugins import hookimpl\n@{marker}\ndef {signature}:\n    yield\n",
    )
    install("good-sdk", "good", GOOD.format(name="good"))
    registry = Registry.discover()
    problem = only_problem(registry)
    assert problem.rule is Rule.HOOK_SIGNATURE
    assert message in problem.message
    assert "good" in registry.engines


def test_two_distributions_with_one_entry_point_name(install: Install) -> None:
    """pluggy would skip the second without a word; here both work, and the doubt is reported."""
    install("acme-sdk", "vllm", GOOD.format(name="acme"))
    install("bcme-sdk", "vllm", GOOD.format(name="bcme"), version="0.3")
    registry = Registry.discover()
    problem = only_problem(registry)
    assert problem.rule is Rule.ENTRY_POINT_UNIQUE
    assert problem.source.distribution == "bcme-sdk"
    assert "acme-sdk 1.0" in problem.message
    assert {"acme", "bcme"} <= set(registry.engines)


def test_two_plugins_with_one_name(install: Install) -> None:
    install("acme-sdk", "acme", GOOD.format(name="fast"))
    install("bcme-sdk", "bcme", GOOD.format(name="fast"))
    registry = Registry.discover()
    assert {problem.source.distribution for problem in registry.problems} == {"acme-sdk", "bcme-sdk"}
    assert {problem.rule for problem in registry.problems} == {Rule.NAME_UNIQUE}
    assert "fast" not in registry.engines
    with pytest.raises(PluginError, match=r"'fast' is offered twice, by plugin 'acme' of acme-sdk 1.0 and"):
        registry.engines.require("fast")
    assert registry.engines.require("echo").name == "echo"
    with pytest.raises(ConfigError, match="install the plugin that offers it"):
        registry.engines.require("quux")


def test_a_plugin_cannot_take_the_name_of_a_builtin(install: Install) -> None:
    install("acme-sdk", "acme", GOOD.format(name="echo"))
    with pytest.raises(PluginError, match=r"dynamo-sdk .* and plugin 'acme' of acme-sdk"):
        Registry.discover().engines.require("echo")


def test_a_missing_name_points_at_the_broken_plugin(install: Install) -> None:
    install("acme-sdk", "acme", "raise OSError('libfoo.so.1 not found')")
    with pytest.raises(
        PluginError,
        match=r"no engine 'acme' \(installed: echo, mocker, openai, torch\).*libfoo.so.1 not found",
    ):
        Registry.discover().engines.require("acme")


def test_the_same_module_twice(install: Install) -> None:
    install("acme-sdk", "acme", GOOD.format(name="acme"))
    install("bcme-sdk", "bcme", value="acme_sdk_plugin")
    registry = Registry.discover()
    assert only_problem(registry).source.distribution == "bcme-sdk"
    assert "acme" in registry.engines
