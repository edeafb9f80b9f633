"""The report for people: one column per policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynamo_sdk.bench.report import Summary
from dynamo_sdk.interfaces import KVTierStatistics

from .report import PolicyReport, SimReport

Row = tuple[str, Callable[[PolicyReport], str]]


def rows(report: SimReport) -> Iterator[Row]:
    """What is shown of each policy; rows that say nothing of any are left out."""
    policies = report.policies
    yield "requests", _requests
    for name, attribute in (
        ("TTFT", "ttft_ms"),
        ("ITL", "itl_ms"),
        ("gap between tokens", "gap_ms"),
        ("end to end", "e2e_ms"),
        ("queue", "queue_ms"),
    ):
        yield f"{name}, ms: mean", _figure(attribute, "mean")
        yield "  p50", _figure(attribute, "p50")
        yield "  p99", _figure(attribute, "p99")
    if any(policy.goodput for policy in policies):
        yield "goodput", lambda policy: f"{policy.goodput.share:.1%}" if policy.goodput else "-"
    yield "output tokens/s", lambda policy: f"{policy.output_tokens_per_s:,.0f}"
    yield "prompt tokens cached", lambda policy: f"{policy.reuse.cached:.2%}"
    if any(policy.reuse.predicted is not None for policy in policies):
        yield (
            "  predicted",
            lambda policy: "-" if policy.reuse.predicted is None else f"{policy.reuse.predicted:.2%}",
        )
    if any(policy.tiers for policy in policies):
        yield "  from tiers", lambda policy: f"{policy.reuse.loaded or 0:.2%}"
    yield "  possible", lambda policy: f"{policy.reuse.reusable:.2%}"
    if any(policy.num_preemptions for policy in policies):
        yield "preemptions", lambda policy: f"{policy.num_preemptions:,}"
    if any(policy.transfers for policy in policies):
        yield (
            "KV moved, GB",
            lambda policy: f"{policy.transfers.num_bytes / 1e9:,.2f}" if policy.transfers else "-",
        )
        yield "  ms per request, mean", _transfer_ms
    if any(policy.tiers for policy in policies):
        yield from _tier_rows(policies)
    yield "busiest worker / mean", lambda policy: f"{policy.balance.busy:.2f}"
    yield "seconds", lambda policy: f"{policy.seconds:,.1f}"
    yield "GPU hours", lambda policy: f"{policy.gpu_hours:,.3f}"


def _tier_rows(policies: Sequence[PolicyReport]) -> Iterator[Row]:
    names = [tier.name for policy in policies if policy.tiers for tier in policy.tiers.statistics.tiers]
    for name in dict.fromkeys(names):
        yield f"{name}: blocks asked for", _of_tier(name, lambda tier: f"{tier.counts.num_lookup_blocks:,}")
        yield "  found", _of_tier(name, _share_found)
        yield "  loaded, GB", _of_tier(name, lambda tier: f"{tier.counts.onboarded_bytes / 1e9:,.2f}")
        yield "  written, GB", _of_tier(name, lambda tier: f"{tier.counts.offloaded_bytes / 1e9:,.2f}")
    yield "prefixes loaded", _decisions("load")
    yield "  ms to load, mean", _load_ms
    yield "  cheaper to compute", _decisions("recompute")


def _of_tier(name: str, show: Callable[[KVTierStatistics], str]) -> Callable[[PolicyReport], str]:
    def find(policy: PolicyReport) -> str:
        tiers = policy.tiers.statistics.tiers if policy.tiers else ()
        return next((show(tier) for tier in tiers if tier.name == name), "-")

    return find


def _share_found(tier: KVTierStatistics) -> str:
    num_hits, num_asked = tier.counts.num_hit_blocks, tier.counts.num_lookup_blocks
    return f"{num_hits / num_asked:.1%}" if num_asked else "-"


def _load_ms(policy: PolicyReport) -> str:
    return f"{policy.tiers.ms.mean:,.2f}" if policy.tiers and policy.tiers.ms else "-"


def _decisions(outcome: str) -> Callable[[PolicyReport], str]:
    return lambda policy: (
        f"{policy.tiers.statistics.num_decisions.get(outcome, 0):,}" if policy.tiers else "-"
    )


def print_report(report: SimReport, console: Console) -> None:
    """Write the whole report."""
    workload = report.workload
    console.print(
        Text(
            f"{workload.name}: {workload.num_requests:,} requests, {workload.num_input_tokens:,} tokens in, "
            f"{workload.num_output_tokens:,} out"
        )
    )
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for policy in report.policies:
        table.add_column(policy.router, justify="right")
    for name, show in rows(report):
        table.add_row(name, *[show(policy) for policy in report.policies])
    console.print(table)
    for policy in report.policies:
        for message, count in policy.errors.items():
            console.print(Text(f"{policy.router}: {count:,} x {message}", "red"))


def _requests(policy: PolicyReport) -> str:
    num_failed = policy.num_requests - policy.num_ok
    return f"{policy.num_ok:,}" + (f" ok, {num_failed:,} failed" if num_failed else "")


def _figure(attribute: str, column: str) -> Callable[[PolicyReport], str]:
    def show(policy: PolicyReport) -> str:
        summary: Summary | None = getattr(policy, attribute)
        return "-" if summary is None else f"{getattr(summary, column):,.2f}"

    return show


def _transfer_ms(policy: PolicyReport) -> str:
    if policy.transfers is None or policy.transfers.ms is None:
        return "-"
    return f"{policy.transfers.ms.mean:,.2f}"
