"""Hook specifications, ``docs/plugins.md`` and the tests say the same."""

from __future__ import annotations

import re
from pathlib import Path

from dynamo_sdk.plugins import Rule, hookspecs
from dynamo_sdk.plugins.inspection import HOOK_ARGUMENTS

from . import test_hooks

DOCS = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def test_every_hook_has_a_section_with_its_exact_arguments() -> None:
    specified = {f"{name}({', '.join(arguments)})" for name, arguments in HOOK_ARGUMENTS.items()}
    assert set(re.findall(r"^### (dynamo_sdk_.*)$", DOCS, re.MULTILINE)) == specified


def test_every_hook_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in vars(test_hooks) if name.startswith("test_dynamo_sdk_")}
    assert tested == set(HOOK_ARGUMENTS)


def test_every_hook_has_a_docstring_of_one_line() -> None:
    for name in HOOK_ARGUMENTS:
        docstring = getattr(hookspecs, name).__doc__
        assert docstring, name
        assert "\n" not in docstring, name


def test_every_rule_is_explained() -> None:
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", DOCS, re.MULTILINE)) == {rule.name for rule in Rule}


def test_the_first_plugin_of_the_docs_works() -> None:
    (source,) = [
        block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "@hookimpl" in block
    ]
    namespace: dict[str, object] = {"__name__": "docs_plugin"}
    exec(source, namespace)
    from types import ModuleType

    from dynamo_sdk.plugins import Registry

    module = ModuleType("docs_plugin")
    module.__dict__.update(namespace)
    registry = Registry.of(module)
    assert registry.problems == ()
    assert registry.engines.require("acme").connectors == ("stateless",)


def test_the_router_of_the_docs_works() -> None:
    (source,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
        if "router_from_function" in block
    ]
    namespace: dict[str, object] = {"__name__": "docs_router"}
    exec(source, namespace)
    assert isinstance(namespace["emptiest"], type)
