"""The records as a Markdown table of medians, with ratios ours to theirs against the goals."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.side_by_side.stats import Ratio, ratio_of

Record = dict[str, object]
Series = dict[tuple[str, str, str], list[float]]
"""Values in the order of the repetitions, by cell, figure and side."""

SIDES = ("ours", "dynamo")


@dataclass(frozen=True, slots=True)
class Row:
    """Which figure of which cells is shown, and what is asked of the ratio or of our own value."""

    cells: str
    figure: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    ours_below: float | None = None

    def verdict(self, ratio: Ratio, ours: float) -> str:
        if self.at_least is not None:
            return f"{'met' if ratio.median >= self.at_least else 'missed'}: at least {self.at_least:g}"
        if self.at_most is None:
            return ""
        is_met = ratio.median <= self.at_most
        goal = f"at most {self.at_most:g}"
        if self.ours_below is not None:
            is_met = is_met and ours < self.ours_below
            goal += f", ours below {self.ours_below:g}"
        return f"{'met' if is_met else 'missed'}: {goal}"


ROWS = (
    Row("stream/", "events_per_s", "events/s", at_least=1.5),
    Row("stream/", "tokens_per_s", "tokens/s"),
    Row("stream/", "requests_per_s", "requests/s"),
    Row("stream/", "frontend_us_per_event", "frontend µs/event", at_most=0.6),
    Row("stream/", "frontend_us_per_token", "frontend µs/token", at_most=0.6),
    Row("stream/", "worker_us_per_token", "worker µs/token"),
    Row("whole/128/", "requests_per_s", "requests/s", at_least=1.2),
    Row("whole/2048/", "requests_per_s", "requests/s", at_least=1.2),
    Row("whole/16384/", "requests_per_s", "requests/s"),
    Row("whole/", "frontend_us_per_request", "frontend µs/request"),
    Row("whole/", "worker_us_per_request", "worker µs/request"),
    Row("ttft/", "ttft_added_ms_p50", "TTFT added, p50 ms", at_most=1.0, ours_below=1.0),
    Row("paced/", "gap_ms_p50", "gap p50 ms"),
    Row("paced/", "gap_ms_p99", "gap p99 ms", at_most=1.0),
    Row("paced/", "events_per_s", "events/s"),
    Row("paced/", "frontend_us_per_event", "frontend µs/event", at_most=0.6),
    Row("memory/", "rss_mib", "frontend MiB", at_most=1.0),
    Row("router/", "router_us_per_request", "µs/request", at_most=2.0),
)
NO_GOAL_AT_ONE = ("events_per_s", "requests_per_s")
"""The goals for rates are for 16 requests at a time and more."""


def series_of(records: Iterable[Record]) -> Series:
    found: Series = defaultdict(list)
    for record in records:
        if record["kind"] != "cell":
            continue
        for name, value in record.items():
            if isinstance(value, float):
                found[str(record["cell"]), name, str(record["side"])].append(value)
    return found


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(records: Sequence[Record]) -> str:
    """One line per cell and figure; failures after the table."""
    series = series_of(records)
    cells = list(dict.fromkeys(cell for cell, _, _ in series))
    lines = [
        "| cell | figure | ours | theirs | ratio (lowest..highest) | n | goal |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in ROWS:
        for cell in cells:
            if cell.startswith(row.cells):
                lines += line(row, cell, series)
    failures = [
        f"- {record['cell']}: {record['message']}" for record in records if record["kind"] == "failure"
    ]
    return "\n".join([*lines, *(["", "Failed:", "", *failures] if failures else []), ""])


def line(row: Row, cell: str, series: Series) -> list[str]:
    ours = series.get((cell, row.figure, "ours"), [])
    others = {side for name, figure, side in series if (name, figure) == (cell, row.figure)} - {"ours"}
    lines = []
    for other in sorted(others):
        theirs = series[cell, row.figure, other]
        if not ours or len(ours) != len(theirs) or not all(theirs):
            continue
        ratio = ratio_of(ours, theirs)
        median = statistics.median(ours)
        has_goal = not (row.figure in NO_GOAL_AT_ONE and cell.endswith("/1"))
        label = cell if other in SIDES else f"{cell} {other}"
        lines.append(
            f"| {label} | {row.unit} | {shown(median)} | {shown(statistics.median(theirs))} | {ratio} "
            f"| {len(ours)} | {row.verdict(ratio, median) if has_goal else ''} |"
        )
    return lines
