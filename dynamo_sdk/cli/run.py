"""``dynamo-sdk run``: serve a graph until somebody stops it."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .plan import DeployPath, Overrides, Target

if TYPE_CHECKING:
    from dynamo_sdk.types.plan import DeploymentPlan

SECRET_VARIABLE = "DYNAMO_SDK_SECRET"


def run(
    target: Target,
    deploy: DeployPath = None,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Where HTTP listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    launcher: Annotated[str, typer.Option(help="What starts the services: local, inprocess, ...")] = "local",
    only: Annotated[
        str | None, typer.Option(metavar="SERVICE", help="Start this service alone; needs --join.")
    ] = None,
    join: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Join the running graph that printed this address.")
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help=f"Holds the shared secret of all processes; else {SECRET_VARIABLE} is read."),
    ] = None,
    ends_with_parent: Annotated[
        bool,
        typer.Option("--end-with-parent", help="Drain when the process that started this one is gone."),
    ] = False,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Serve a graph. Prints `ready http://HOST:PORT` once every edge has answered; Ctrl-C drains."""
    parent_pid = os.getppid() if ends_with_parent else None

    from dynamo_sdk.interfaces import LaunchOptions
    from dynamo_sdk.plugins import Registry

    from .plan import load_plan

    if debug:
        from dynamo_sdk.launch.exits import turn_debug_on

        turn_debug_on()
    registry = Registry.discover()

    def load() -> DeploymentPlan:
        return load_plan(
            target,
            deploy=deploy,
            overrides=[*without_others(target, only), *(overrides or ())],
            launcher=launcher,
            registry=registry,
        )

    if is_dry:
        from dynamo_sdk.graph import render

        from .console import table_console

        render.print_plan(load(), table_console())
        return

    from .serve import quiet_stdout, run_until_stopped

    options = LaunchOptions(
        host=host, port=port, only=only, join=join, secret=read_secret(secret_file, os.environ)
    )
    with quiet_stdout() as answer:
        plan = load()
        launcher_class = registry.load(registry.launchers.require(launcher))
        run_until_stopped(launcher_class(plan, options), answer, parent_pid=parent_pid)


def without_others(target: str, only: str | None) -> list[str]:
    """Overrides that leave every service but ``only`` to others: they need no GPUs of this host."""
    from dynamo_sdk.runtime.target import load_graph

    if only is None:
        return []
    names = [node.name for node in load_graph(target).services()]
    return [f"services.{name}.replicas=0" for name in names if name != only]


def read_secret(file: Path | None, environment: MutableMapping[str, str]) -> str | None:
    """The shared secret, if there is one. It is taken out of ``environment``, so that engines and
    whatever they start do not inherit it. Raises ``ConfigError``."""
    from dynamo_sdk.errors import ConfigError

    secret = environment.pop(SECRET_VARIABLE, None)
    if file is not None:
        try:
            secret = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the secret file {str(file)!r}: {error}") from error
    if secret == "":
        raise ConfigError(f"the shared secret is empty; check {file or SECRET_VARIABLE}")
    return secret
