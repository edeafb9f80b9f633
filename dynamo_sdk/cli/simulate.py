"""``dynamo-sdk simulate``: a graph in virtual time, under a trace or a workload that is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bench import check_writable
from .plan import DeployPath, Overrides, Target

if TYPE_CHECKING:
    from dynamo_sdk.simulate import Outcome, Workload
    from dynamo_sdk.simulate.report import SimReport
    from dynamo_sdk.types.plan import Json

_LOAD, _FLEET, _OUTPUT = "Load", "Fleet", "Report"


def simulate(
    target: Target,
    deploy: DeployPath = None,
    overrides: Overrides = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Mooncake JSONL or Azure CSV.", rich_help_panel=_LOAD),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,KEY=VALUE,...",
            help="Made, not recorded: shared-prompts, chats, agents or unique.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=1e-6, help="Plays a trace's times faster.", rich_help_panel=_LOAD)
    ] = 1.0,
    requests: Annotated[
        int | None,
        typer.Option("--requests", "-n", min=1, help="The first so many of a trace.", rich_help_panel=_LOAD),
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per hash id.", rich_help_panel=_LOAD)
    ] = 512,
    save_trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Writes the load down.", rich_help_panel=_LOAD)
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY,...",
            help="Router names or package.module:name. Default: the graph's own router.",
            rich_help_panel=_FLEET,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which one, if several are served.", rich_help_panel=_FLEET)
    ] = None,
    mocker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A setting of all simulated engines, over the deploy file's.",
            rich_help_panel=_FLEET,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.", rich_help_panel=_FLEET)] = 0,
    event_lag_ms: Annotated[
        float, typer.Option(min=0, help="How late routers learn of KV blocks.", rich_help_panel=_FLEET)
    ] = 0.0,
    no_events: Annotated[
        bool,
        typer.Option("--no-events", help="Engines publish no KV events.", rich_help_panel=_FLEET),
    ] = False,
    load_lag_ms: Annotated[
        float, typer.Option(min=0, help="How late routers learn of loads.", rich_help_panel=_FLEET)
    ] = 0.0,
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
        typer.Option(
            metavar="FILE", help="One line of JSON per request and policy.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with plots.", rich_help_panel=_OUTPUT)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Try a graph in virtual time: its routers and schedulers under a trace. Nothing is started."""
    from dynamo_sdk.bench.report import Targets
    from dynamo_sdk.plugins import Registry
    from dynamo_sdk.simulate import SimOptions
    from dynamo_sdk.simulate import simulate as run
    from dynamo_sdk.simulate.report import make_report
    from dynamo_sdk.simulate.setup import BOUNDLESS, fleet_specs
    from dynamo_sdk.simulate.traces import write_workload

    from .plan import load_plan_for

    if debug:
        from dynamo_sdk.launch.exits import turn_debug_on

        turn_debug_on()
    for path in (save_trace, json_out, records, html):
        check_writable(path)
    load = load_workload(
        trace, workload, block_tokens=block_tokens, speed=speed, requests=requests, seed=seed
    )
    if save_trace is not None:
        write_workload(load, save_trace)
    plan, registry = load_plan_for(
        BOUNDLESS, target, deploy=deploy, overrides=overrides or (), registry=Registry.discover()
    )
    specs = fleet_specs(
        plan,
        registry,
        model=model,
        mocker_args=parse_settings(mocker or ()),
        policies=[name.strip() for name in compare.split(",")] if compare else (),
    )
    options = SimOptions(
        seed=seed,
        kv_event_lag_s=event_lag_ms / 1e3,
        load_lag_s=load_lag_ms / 1e3,
        has_kv_events=not no_events,
    )
    outcomes = [run(load, spec, options) for spec in specs]
    report = make_report(
        load,
        outcomes,
        targets=Targets(ttft_ms=ttft_ms, itl_ms=itl_ms),
        settings={
            "target": target,
            "seed": seed,
            "speed": speed,
            "event_lag_ms": None if no_events else event_lag_ms,
            "load_lag_ms": load_lag_ms,
            "replicas": ", ".join(f"{pool.service} {pool.num_replicas}" for pool in specs[0].pools),
        },
    )
    write_files(report, outcomes, json_out=json_out, records=records, html_out=html)
    show(report)


def load_workload(
    trace: Path | None,
    workload: str | None,
    *,
    block_tokens: int,
    speed: float,
    requests: int | None,
    seed: int,
) -> Workload:
    """What was asked for, read or made. Raises ``ConfigError``."""
    from dynamo_sdk.errors import ConfigError
    from dynamo_sdk.simulate.traces import read_workload
    from dynamo_sdk.simulate.workloads import parse_generator

    if (trace is None) == (workload is None):
        raise ConfigError("give one of --trace and --workload")
    if trace is not None:
        return read_workload(trace, block_tokens=block_tokens, speed=speed, max_requests=requests)
    if speed != 1.0 or requests is not None:
        raise ConfigError("--speed and --requests are for traces; a workload has its own rate and number")
    return parse_generator(workload or "").make(seed=seed, block_tokens=block_tokens)


def parse_settings(pairs: Sequence[str]) -> dict[str, Json]:
    """``KEY=VALUE``, values as in a deploy file. Raises ``ConfigError``."""
    import yaml

    from dynamo_sdk.errors import ConfigError

    found: dict[str, Json] = {}
    for pair in pairs:
        key, is_given, value = pair.partition("=")
        if not is_given or not key:
            raise ConfigError(f"--mocker: {pair!r} is no KEY=VALUE")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--mocker: {pair!r}: {error}") from error
    return found


def write_files(
    report: SimReport,
    outcomes: Sequence[Outcome],
    *,
    json_out: Path | None,
    records: Path | None,
    html_out: Path | None,
) -> None:
    """The files that were asked for."""
    import msgspec

    from dynamo_sdk.simulate.html import render_html

    encode = msgspec.json.encode
    if json_out is not None:
        json_out.write_bytes(msgspec.json.format(encode(report), indent=2) + b"\n")
    if records is not None:
        with records.open("wb") as file:
            for outcome in outcomes:
                for record in outcome.requests:
                    file.write(encode({"router": outcome.router} | msgspec.to_builtins(record)) + b"\n")
    if html_out is not None:
        html_out.write_text(render_html(report, outcomes), encoding="utf-8")


def show(report: SimReport) -> None:
    """Print the report. Raises ``typer.Exit`` with 1 when a policy served nobody."""
    from rich.console import Console

    from dynamo_sdk.launch.exits import EXIT_FAILED
    from dynamo_sdk.simulate.text import print_report

    print_report(report, Console(soft_wrap=True))
    if not all(policy.num_ok for policy in report.policies):
        raise typer.Exit(EXIT_FAILED)
