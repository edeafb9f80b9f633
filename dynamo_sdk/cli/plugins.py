"""``dynamo-sdk plugins``: what is installed, who offers it, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dynamo_sdk.plugins import Registry


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what is installed: kind, name, distribution, version, problems."""
    from dynamo_sdk.plugins import Registry

    from .console import table_console

    registry = Registry.discover()
    if as_json:
        typer.echo(render_json(registry))
    else:
        print_tables(registry, table_console())


def render_json(registry: Registry) -> str:
    """``{"plugins": [...], "problems": [...]}``, in a stable order."""
    import msgspec

    from dynamo_sdk.plugins import Kind

    offered = [
        {
            "kind": kind,
            "name": descriptor.name,
            "distribution": source.distribution,
            "version": source.version,
            "plugin": source.plugin,
            "factory": descriptor.factory,
            "summary": descriptor.summary,
            "problems": [problem.message for problem in registry.problems_of(source)],
        }
        for kind in Kind
        for descriptor, source in registry.catalogue(kind).offers()
    ]
    document = {"plugins": offered, "problems": registry.problems}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def print_tables(registry: Registry, console: Console) -> None:
    """One table of what can be used and, when there are any, one of problems."""
    from rich.table import Table
    from rich.text import Text

    from dynamo_sdk.plugins import Kind

    offered = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "distribution", "version", "problems", "summary"):
        offered.add_column(column, overflow="fold")
    for kind in Kind:
        for descriptor, source in registry.catalogue(kind).offers():
            num_problems = len(registry.problems_of(source))
            offered.add_row(
                kind,
                Text(descriptor.name),
                Text(source.distribution),
                Text(source.version),
                Text(f"{num_problems}, see below", "red") if num_problems else Text("none", "green"),
                Text(descriptor.summary),
            )
    console.print(offered)

    if not registry.problems:
        return
    problems = Table(box=None, pad_edge=False, header_style="bold red")
    for column in ("problem", "distribution", "where", "rule"):
        problems.add_column(column, overflow="fold")
    for problem in registry.problems:
        where = f"{problem.file}:{problem.line}" if problem.file else ""
        distribution = f"{problem.source.distribution} {problem.source.version}"
        problems.add_row(*map(Text, (problem.message, distribution, where, problem.rule)))
    console.print()
    console.print(problems)
