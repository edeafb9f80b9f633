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

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Row:
    """Which figure of which cells is shown, and what is asked of the ratio or of our own value."""

    cells: str
    figure: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    ours_below: float | None = None

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        absolute = "" if self.ours_below is None else f", ours below {self.ours_below:g}"
        return f"at most {self.at_most:g}{absolute}"


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
    Row("router/", "frontend_us_per_request", "own µs/request", at_most=2.0),
)
RATES = ("events_per_s", "requests_per_s")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of one cell; ``ours`` and ``theirs`` are medians."""

    cell: str
    row: Row
    ours: float
    theirs: float
    ratio: Ratio
    num_repetitions: int

    @property
    def is_met(self) -> bool | None:
        """None where there is no goal: those for rates are for 16 requests at a time and more."""
        row, ratio = self.row, self.ratio.median
        if row.figure in RATES and self.cell.endswith("/1"):
            return None
        if row.at_least is not None:
            return ratio >= row.at_least
        if row.at_most is not None:
            return ratio <= row.at_most and (row.ours_below is None or self.ours < row.ours_below)
        return None


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """In the order of `ROWS`. A figure that one side lacks, or that was nothing there, is left out."""
    series = series_of(records)
    found = []
    for row in ROWS:
        for cell, figure, side in series:
            if figure != row.figure or side == OURS or not cell.startswith(row.cells):
                continue
            ours, theirs = series.get((cell, figure, OURS), []), series[cell, figure, side]
            if not ours or len(ours) != len(theirs) or not all(theirs):
                continue
            found.append(
                Comparison(
                    cell=cell,
                    row=row,
                    ours=statistics.median(ours),
                    theirs=statistics.median(theirs),
                    ratio=ratio_of(ours, theirs),
                    num_repetitions=len(ours),
                )
            )
    return found


def markdown(records: Sequence[Record]) -> str:
    """One line per cell and figure; failures after the table."""
    lines = [
        "| cell | figure | ours | theirs | ratio (lowest..highest) | n | goal |",
        "|---|---|---:|---:|---:|---:|---|",
        *(line(comparison) for comparison in comparisons(records)),
    ]
    failures = [
        f"- {record['cell']}: {record['message']}" for record in records if record["kind"] == "failure"
    ]
    return "\n".join([*lines, *(["", "Failed:", "", *failures] if failures else []), ""])


def line(one: Comparison) -> str:
    verdict = "" if one.is_met is None else f"{'met' if one.is_met else 'missed'}: {one.row.goal}"
    return (
        f"| {one.cell} | {one.row.unit} | {shown(one.ours)} | {shown(one.theirs)} | {one.ratio} "
        f"| {one.num_repetitions} | {verdict} |"
    )
