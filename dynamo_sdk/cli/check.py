"""``dynamo-sdk check``: does an installed plugin keep the promises of its interface?"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dynamo_sdk.testing import CheckResult, Kit, Report
    from dynamo_sdk.types.plan import Json

_ENGINE = "Engines"


def check(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="engine, router, planner, kv-connector or kv-store.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `dynamo-sdk plugins` shows it.")],
    args: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ARG=VALUE", help="An argument of the plugin, as in a deploy file."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a Hugging Face id or `demo`.", rich_help_panel=_ENGINE)
    ] = "demo",
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="A LoRA adapter to load; give two to check that one can replace the other.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    inexact: Annotated[
        bool,
        typer.Option("--inexact", help="Its tokens may differ between batches.", rich_help_panel=_ENGINE),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one check.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a report.")] = False,
) -> None:
    """Run the conformance checks of an installed plugin. Exits with 1 when one fails."""
    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.launch.exits import EXIT_FAILED
    from dynamo_sdk.plugins import Kind, Registry
    from dynamo_sdk.testing import CHECKED_KINDS, CheckOptions, installed_kit

    if kind not in CHECKED_KINDS:
        raise ConfigError(f"no checks for {kind!r}; KIND is one of {', '.join(CHECKED_KINDS)}")
    sys.path.insert(0, os.getcwd())  # a plugin under development is imported like a graph
    options = CheckOptions(
        args=parse_args(args or ()),
        model=model,
        loras=lora or (),
        is_exact=not inexact,
        timeout_s=timeout,
    )
    kit = installed_kit(Registry.discover(), Kind(kind), name, options)
    report = run_kit(kit, is_silent=as_json)
    if as_json:
        typer.echo(render_json(kind, name, kit, report))
    else:
        typer.echo(f"{kind} {name}: {report.counts}")
    if not report.is_ok:
        raise typer.Exit(EXIT_FAILED)


def parse_args(pairs: Sequence[str]) -> dict[str, Json]:
    """``ARG=VALUE``, values as in a deploy file. Raises ``ConfigError``."""
    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.graph.yaml_text import read_yaml

    found: dict[str, Json] = {}
    for pair in pairs:
        arg, is_given, value = pair.partition("=")
        if not is_given or not arg:
            raise ConfigError(f"--set {pair}: write ARG=VALUE, e.g. --set block_size=16")
        found[arg] = read_yaml(value, name=f"--set {pair}").value
    return found


def run_kit(kit: Kit[Any], *, is_silent: bool) -> Report:
    """Run all checks, and print each result as it comes."""
    import anyio
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, quiet=is_silent)
    watch = Watch(kit)

    def on_result(result: CheckResult) -> None:
        watch.rewind()
        print_result(result, console)

    with watch:
        return anyio.run(kit.run, on_result)


def print_result(result: CheckResult, console: Console) -> None:
    """One line; for a skipped or unclaimed check the reason, for a failed one what its author needs."""
    from rich.text import Text

    style = {"passed": "green", "failed": "bold red", "skipped": "yellow", "unclaimed": "yellow"}
    line = Text(f"{result.outcome:<10}", style[result.outcome])
    line.append(result.name, "default")
    if result.outcome in ("skipped", "unclaimed"):
        line.append(f"  {result.detail}", "dim")
    console.print(line)
    if result.outcome == "failed":
        for text in result.explanation.splitlines():
            console.print(Text(f"          {text}"))


def render_json(kind: str, name: str, kit: Kit[Any], report: Report) -> str:
    """The whole report, in the order of the checks."""
    import msgspec

    document = {
        "kind": kind,
        "name": name,
        "subject": report.subject,
        "place": kit.subject.place,
        "is_ok": report.is_ok,
        **{outcome.value: report.num(outcome) for outcome in type(report.results[0].outcome)},
        "results": report.results,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


class Watch:
    """Ends the program when a plugin blocks for good what all checks run on: no time-out can reach that.

    It waits three times as long as one check may take, because giving up takes time too.
    """

    def __init__(self, kit: Kit[Any]) -> None:
        self._kit = kit
        self._limit_s = 3 * kit.timeout_s
        self._main = threading.get_ident()
        self._rewound = threading.Event()
        self._is_over = False

    def __enter__(self) -> None:
        threading.Thread(target=self._wait, name="watch", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._rewound.set()

    def rewind(self) -> None:
        """Something has come."""
        self._rewound.set()

    def _wait(self) -> None:
        while self._rewound.wait(self._limit_s):
            if self._is_over:
                return
            self._rewound.clear()
        from dynamo_sdk.testing.places import place_in

        frame = sys._current_frames().get(self._main)
        place = place_in(traceback.extract_stack(frame), self._kit.subject)
        sys.stdout.flush()
        sys.stderr.write(
            f"error: the event loop has been blocked for {self._limit_s:g} s, at {place}\n"
            "rule: what blocks belongs on a thread or in a process of the plugin's own\n"
        )
        sys.stderr.flush()
        os._exit(1)
