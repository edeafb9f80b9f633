"""``dynamo-sdk bench``: load an OpenAI endpoint and report what its users would see."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dynamo_sdk.bench import BenchOptions, Outcome
    from dynamo_sdk.bench.load import Load

_LOAD, _SIZES, _OUTPUT = "Load", "Prompts and answers", "Report"


class EndpointName(StrEnum):
    """As in ``dynamo_sdk.bench``, which is not imported for ``--help``."""

    CHAT = "chat"
    COMPLETIONS = "completions"


class ArrivalsName(StrEnum):
    POISSON = "poisson"
    EVEN = "even"


def bench(
    url: Annotated[str, typer.Option(help="Where the server is: http://HOST:PORT, with or without /v1.")],
    model: Annotated[str | None, typer.Option(help="Default: the only one of /v1/models.")] = None,
    endpoint: Annotated[EndpointName, typer.Option(help="What to ask.")] = EndpointName.CHAT,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Sent as a bearer token.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", "-c", min=1, help="Closed loop: so many at once.", rich_help_panel=_LOAD
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Open loop: so many a second.", rich_help_panel=_LOAD)
    ] = None,
    arrivals: Annotated[
        ArrivalsName, typer.Option(help="How --rate is spread.", rich_help_panel=_LOAD)
    ] = ArrivalsName.POISSON,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Mooncake JSONL: sizes and prefixes; times, too, without --concurrency and --rate.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=1e-6, help="Plays a trace's times faster.", rich_help_panel=_LOAD)
    ] = 1.0,
    requests: Annotated[
        int | None, typer.Option("--requests", "-n", min=1, help="End after so many.", rich_help_panel=_LOAD)
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            min=1e-3, help="Send for so many seconds. Default: 30, a trace to its end.", rich_help_panel=_LOAD
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="First requests that do not count. Default: --concurrency, open loop 0.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1e-3, help="Seconds for one request.", rich_help_panel=_LOAD)
    ] = 600.0,
    input_tokens: Annotated[
        int,
        typer.Option(min=1, help="Length of a prompt, without the chat template.", rich_help_panel=_SIZES),
    ] = 512,
    output_tokens: Annotated[
        int, typer.Option(min=1, help="max_tokens of an answer.", rich_help_panel=_SIZES)
    ] = 128,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Makes prompt lengths exact.", rich_help_panel=_SIZES),
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per hash id of a trace.", rich_help_panel=_SIZES)
    ] = 512,
    seed: Annotated[
        int | None,
        typer.Option(help="Same seed, same prompts and times. Default: a new one.", rich_help_panel=_SIZES),
    ] = None,
    extra: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="Fields for every request: '{\"ignore_eos\": true}'.", rich_help_panel=_SIZES
        ),
    ] = None,
    ttft_ms: Annotated[
        float | None,
        typer.Option(min=0, help="Goodput: the most TTFT of a good request.", rich_help_panel=_OUTPUT),
    ] = None,
    itl_ms: Annotated[
        float | None,
        typer.Option(min=0, help="Goodput: the most ITL of a good request.", rich_help_panel=_OUTPUT),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All figures.", rich_help_panel=_OUTPUT)
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One line of JSON per request.", rich_help_panel=_OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An SVG picture.", rich_help_panel=_OUTPUT)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Load an OpenAI endpoint; report TTFT, ITL, throughput, goodput. Ctrl-C ends early, with a report."""
    from random import SystemRandom

    from dynamo_sdk.bench import Arrivals, BenchOptions, Endpoint, Target, Targets

    if debug:
        from dynamo_sdk.launch.exits import turn_debug_on

        turn_debug_on()
    for path in (json_out, records, plot):
        check_writable(path)
    options = BenchOptions(
        target=Target.parse(url, api_key=api_key),
        endpoint=Endpoint(endpoint),
        model=model,
        concurrency=concurrency,
        rate=rate,
        arrivals=Arrivals(arrivals),
        trace=trace,
        speed=speed,
        block_tokens=block_tokens,
        max_requests=requests,
        duration_s=duration,
        num_warmup=warmup,
        num_input_tokens=input_tokens,
        num_output_tokens=output_tokens,
        seed=SystemRandom().randrange(1 << 31) if seed is None else seed,
        tokenizer=tokenizer,
        extra=parse_extra(extra),
        timeout_s=timeout,
        targets=Targets(ttft_ms=ttft_ms, itl_ms=itl_ms),
    )
    outcome = run(options)
    write_files(outcome, json_out=json_out, records=records, plot_out=plot)
    show(outcome)


def run(options: BenchOptions) -> Outcome:
    """Run it on an event loop of its own, with a line of progress where standard error is a terminal."""
    import importlib.util

    import anyio

    from dynamo_sdk.bench import run_bench

    has_uvloop = importlib.util.find_spec("uvloop") is not None
    with _progress() as observe:
        return anyio.run(run_bench, options, observe, backend_options={"use_uvloop": has_uvloop})


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Load], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from dynamo_sdk.bench import progress_line

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda load: live.update(Text(progress_line(load), no_wrap=True), refresh=True)


def write_files(
    outcome: Outcome, *, json_out: Path | None, records: Path | None, plot_out: Path | None
) -> None:
    """The files that were asked for."""
    import msgspec

    from dynamo_sdk.bench import plot

    encode = msgspec.json.encode
    if json_out is not None:
        json_out.write_bytes(msgspec.json.format(encode(outcome.report), indent=2) + b"\n")
    if records is not None:
        records.write_bytes(b"".join(encode(record) + b"\n" for record in outcome.load.records))
    if plot_out is not None:
        plot_out.write_text(plot(outcome.report, outcome.load.records), encoding="utf-8")


def show(outcome: Outcome) -> None:
    """Print the report. Raises ``typer.Exit`` with 1 when no measured request succeeded."""
    from rich.console import Console

    from dynamo_sdk.bench import print_report
    from dynamo_sdk.launch.exits import EXIT_FAILED

    print_report(outcome.report, Console(soft_wrap=True))
    if not outcome.report.num_ok:
        raise typer.Exit(EXIT_FAILED)


def check_writable(path: Path | None) -> None:
    """Better before a long run than after it. Raises ``ConfigError``."""
    from dynamo_sdk.errors import ConfigError

    if path is None:
        return
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror}") from error


def parse_extra(text: str | None) -> dict[str, Any]:
    """Raises ``ConfigError`` for what is no JSON object."""
    import msgspec

    from dynamo_sdk.errors import ConfigError

    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text is not None else {}
    except msgspec.DecodeError as error:
        raise ConfigError(f"--extra: {text!r} is no JSON object: {error}") from error
