"""``dynamo-sdk plan``: what would run, and where each value comes from, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynamo_sdk.plugins import Registry
    from dynamo_sdk.types.plan import DeploymentPlan, Inventory

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="graph.py, graph.py:name or package.module:name.")
]
DeployPath = Annotated[
    Path | None, typer.Option("-f", "--file", metavar="DEPLOY.YAML", help="The deploy file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value, e.g. services.Decode.replicas=2."),
]
LauncherName = Annotated[str, typer.Option("--launcher", help="Whose hosts and GPUs the plan is made for.")]


def plan(
    target: Target,
    deploy: DeployPath = None,
    overrides: Overrides = None,
    launcher: LauncherName = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
) -> None:
    """Print the compiled plan: services, replicas, GPUs, and every setting with its origin."""
    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.graph import render
    from dynamo_sdk.plugins import Registry

    from .console import table_console

    if as_json and as_mermaid:
        raise ConfigError("--json and --mermaid exclude each other; give one")
    compiled = load_plan(
        target, deploy=deploy, overrides=overrides or (), launcher=launcher, registry=Registry.discover()
    )
    if as_json:
        typer.echo(render.render_json(compiled))
    elif as_mermaid:
        typer.echo(render.render_mermaid(compiled), nl=False)
    else:
        render.print_plan(compiled, table_console())


def load_plan(
    target: str,
    *,
    deploy: Path | None,
    overrides: Sequence[str],
    launcher: str,
    registry: Registry,
) -> DeploymentPlan:
    """Import the graph, read the deploy file and compile both for the launcher's inventory.

    Raises ``GraphError``, ``ConfigError`` or ``PluginError``.
    """
    inventory = registry.load(registry.launchers.require(launcher)).inventory()
    compiled, _ = load_plan_for(inventory, target, deploy=deploy, overrides=overrides, registry=registry)
    return compiled


def load_plan_for(
    inventory: Inventory,
    target: str,
    *,
    deploy: Path | None,
    overrides: Sequence[str],
    registry: Registry,
) -> tuple[DeploymentPlan, Registry]:
    """The same for any inventory; with the registry that also knows what the graph's modules offer."""
    from dynamo_sdk.graph.compile import compile_plan
    from dynamo_sdk.graph.deploy import parse_deploy
    from dynamo_sdk.graph.local import deploy_text
    from dynamo_sdk.runtime.target import load_graph

    name = deploy.name if deploy else "deploy file"
    settings = parse_deploy(deploy_text(deploy), overrides=overrides, name=name)
    graph = load_graph(target)
    registry = registry.including(*graph.modules())
    compiled = compile_plan(graph, target=target, registry=registry, inventory=inventory, deploy=settings)
    return compiled, registry
