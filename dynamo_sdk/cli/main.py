"""Where ``dynamo-sdk`` starts, and where each of its errors ends: one readable block, one exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dynamo_sdk import __version__

from .bench import bench
from .check import check
from .explain import explain
from .kv import kv
from .plan import plan
from .plugins import plugins
from .run import run
from .simulate import simulate

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "plugins": plugins,
    "check": check,
    "bench": bench,
    "simulate": simulate,
    "explain": explain,
    "kv": kv,
}
EXIT_INTERRUPTED = 130
PLUGIN_GROUP = "dynamo_sdk"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 clean, 1 the graph failed, 2 the user's input was wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build_app(words)(words, prog_name="dynamo-sdk")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `dynamo-sdk plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        from .failure import report

        sys.exit(report(error))
    sys.exit(0)


def build_app(words: Sequence[str]) -> typer.Typer:
    """The commands, ours and those of plugins; the latter are looked up only if ours are not meant."""
    app = typer.Typer(
        name="dynamo-sdk",
        help="Serve large language models, disaggregated, from one graph file.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_common)
    for name, function in COMMANDS.items():
        app.command(name)(function)
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in COMMANDS:
        _add_plugin_commands(app, command)
    return app


def _add_plugin_commands(app: typer.Typer, wanted: str | None) -> None:
    """A command that cannot be loaded is an error only for who wants it; ``plugins`` shows the others."""
    from importlib.metadata import entry_points

    if not entry_points(group=PLUGIN_GROUP):
        return  # a third of the time of `--help`, saved for most
    from dynamo_sdk.errors import PluginError
    from dynamo_sdk.plugins import Registry

    registry = Registry.discover()
    for name, descriptor in registry.commands.items():
        try:
            app.command(name)(registry.load_command(descriptor))
        except PluginError:
            if name == wanted:
                raise


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dynamo-sdk {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        from dynamo_sdk.launch.exits import turn_debug_on

        turn_debug_on()
