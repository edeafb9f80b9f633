"""The report for people: a table of latencies, then lines of rates, errors and warnings."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .load import Load
from .report import Report, Summary

_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def print_report(report: Report, console: Console) -> None:
    """Write the whole report."""
    console.print(_latencies(report))
    console.print()
    for name, value in _rates(report):
        console.print(Text(f"{name:<11} {value}"))
    for kind, count in report.errors.items():
        console.print(Text(f"error {kind}: {count} x, such as: {report.error_examples[kind]}", "red"))
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", "yellow"))


def _latencies(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("milliseconds")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    rows = (
        ("time to first token", report.ttft_ms),
        ("inter-token latency", report.itl_ms),
        ("end to end", report.e2e_ms),
        ("gap between chunks", report.gap_ms),
    )
    for name, summary in rows:
        table.add_row(name, *_cells(summary))
    return table


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["-"] * len(_COLUMNS)
    return [f"{getattr(summary, column):,.2f}" for column in _COLUMNS]


def _rates(report: Report) -> Iterator[tuple[str, str]]:
    yield "requests", _counts(report)
    yield (
        "throughput",
        f"{report.requests_per_s:,.2f} requests/s, {report.mean_in_flight:,.1f} in flight on average",
    )
    yield (
        "tokens",
        f"{report.output_tokens_per_s:,.1f} out/s, {report.input_tokens_per_s:,.1f} in/s{_sizes(report)}",
    )
    if report.goodput is not None:
        targets = report.goodput.targets
        named = [
            f"{name} <= {limit:g} ms"
            for name, limit in (("TTFT", targets.ttft_ms), ("ITL", targets.itl_ms))
            if limit is not None
        ]
        good = report.goodput
        yield "goodput", f"{good.requests_per_s:,.2f} requests/s, {good.share:.1%} with {' and '.join(named)}"
    client = report.client
    lags = [
        f"{what} {lag.p99:.1f} ms late at p99"
        for what, lag in (("read", client.loop_lag_ms), ("sent", client.send_lag_ms))
        if lag is not None
    ]
    yield "client", ", ".join([f"{client.cpu_share:.0%} of a core", *lags])


def _counts(report: Report) -> str:
    parts = [f"{report.num_ok:,} ok", f"{report.num_requests - report.num_ok:,} failed"]
    if report.num_unfinished:
        parts.append(f"{report.num_unfinished:,} cut off")
    if report.num_warmup:
        parts.append(f"{report.num_warmup:,} to warm up, not counted")
    return f"{', '.join(parts)}, in {report.seconds:,.2f} s"


def _sizes(report: Report) -> str:
    if report.input_tokens is None or report.output_tokens is None:
        return ""
    cached = f", {report.cached_share:.1%} of the input cached" if report.cached_share is not None else ""
    return f"; {report.input_tokens.mean:,.0f} in, {report.output_tokens.mean:,.0f} out each{cached}"


def progress_line(load: Load) -> str:
    """One line on what goes on, for a terminal."""
    num_over = len(load.records)
    recent = [record.ttft_s for record in load.records[-50:] if record.ttft_s is not None]
    ttft = f"{sum(recent) / len(recent) * 1e3:,.0f} ms" if recent else "-"
    passed_s = max(load.now_s, 1e-9)
    return (
        f"{load.now_s:6.1f} s  {num_over:,} over, {load.num_running:,} running, {load.num_failed:,} failed  "
        f"{num_over / passed_s:,.1f} requests/s  {load.num_output_tokens / passed_s:,.0f} tokens/s  "
        f"recent TTFT {ttft}"
    )
