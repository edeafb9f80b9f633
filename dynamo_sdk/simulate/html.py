"""The report as one HTML file: a table and drawings, no script, nothing from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from dynamo_sdk.bench.panels import COLOURS, Point, bars, curves, document, dots, lines

from .record import Outcome, RequestRecord
from .report import SimReport
from .text import rows

_STYLE = """
body { font-family: system-ui, sans-serif; color: #111827; margin: 2rem auto; max-width: 920px; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child { text-align: left; white-space: pre; }
p.note { color: #4b5563; font-size: .85rem; } svg { max-width: 100%; height: auto; }
"""
_NUM_SPANS = 60


def render_html(report: SimReport, outcomes: Sequence[Outcome]) -> str:
    """A whole document."""
    workload = report.workload
    title = f"{workload.name} on {report.settings.get('target')}"
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items() if value is not None)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="note">{workload.num_requests:,} requests, {workload.num_input_tokens:,} prompt '
            f"tokens, {workload.num_output_tokens:,} output tokens. {escape(settings)}.</p>",
            _table(report),
            *(f'<p class="note">{escape(line)}</p>' for line in _errors(report)),
            "<h2>Latencies by percentile</h2>",
            _latencies(outcomes),
            "<h2>Over time</h2>",
            _over_time(outcomes),
            "<h2>Workers</h2>",
            _workers(outcomes),
            "</body>\n</html>\n",
        ]
    )


def _table(report: SimReport) -> str:
    heads = "".join(f"<th>{escape(policy.router)}</th>" for policy in report.policies)
    body = "\n".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{escape(show(policy))}</td>" for policy in report.policies)
        + "</tr>"
        for name, show in rows(report)
    )
    return f"<table>\n<tr><th></th>{heads}</tr>\n{body}\n</table>"


def _errors(report: SimReport) -> list[str]:
    return [
        f"{policy.router}: {count:,} x {message}"
        for policy in report.policies
        for message, count in policy.errors.items()
    ]


def _latencies(outcomes: Sequence[Outcome]) -> str:
    def of(name: str) -> dict[str, list[float]]:
        return {
            outcome.router: [
                value * 1e3 for found in outcome.requests if (value := getattr(found, name)) is not None
            ]
            for outcome in outcomes
        }

    return document(
        "",
        [
            curves("time to first token, ms", of("ttft_s")),
            curves("inter-token latency, ms", of("itl_s")),
            curves("end to end, ms", of("e2e_s")),
            curves("prompt tokens to compute", _computed(outcomes)),
        ],
    )


def _computed(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    return {
        outcome.router: [
            float(found.num_input_tokens - found.num_cached_tokens) for found in outcome.requests
        ]
        for outcome in outcomes
    }


def _over_time(outcomes: Sequence[Outcome]) -> str:
    end_s = max((outcome.ended_s for outcome in outcomes), default=0.0)
    panels = [
        lines(
            "requests under way",
            {outcome.router: _under_way(outcome.requests, end_s) for outcome in outcomes},
        ),
        lines(
            "share of prompt tokens cached, %",
            {outcome.router: _cached_share(outcome.requests, end_s) for outcome in outcomes},
        ),
    ]
    for number, outcome in enumerate(outcomes):
        points = [
            (found.arrival_s, found.ttft_s * 1e3) for found in outcome.requests if found.ttft_s is not None
        ]
        failed = [(found.arrival_s, 0.0) for found in outcome.requests if found.error is not None]
        title = f"{outcome.router}: time to first token, ms, by arrival"
        panels.append(dots(title, points, failed, colour=COLOURS[number % len(COLOURS)]))
    return document("", panels)


def _spans(end_s: float) -> list[float]:
    return [end_s * number / _NUM_SPANS for number in range(_NUM_SPANS + 1)]


def _under_way(records: Sequence[RequestRecord], end_s: float) -> list[Point]:
    changes = sorted(
        [(found.arrival_s, 1) for found in records]
        + [(found.last_token_s, -1) for found in records if found.last_token_s is not None]
    )
    points: list[Point] = []
    count, at = 0, 0
    for moment in _spans(end_s):
        while at < len(changes) and changes[at][0] <= moment:
            count += changes[at][1]
            at += 1
        points.append((moment, float(count)))
    return points


def _cached_share(records: Sequence[RequestRecord], end_s: float) -> list[Point]:
    width = end_s / _NUM_SPANS or 1.0
    asked: Counter[int] = Counter()
    cached: Counter[int] = Counter()
    for found in records:
        span = int(found.arrival_s / width)
        asked[span] += found.num_input_tokens
        cached[span] += found.num_cached_tokens
    return [((span + 0.5) * width, 100 * cached[span] / asked[span]) for span in sorted(asked)]


def _workers(outcomes: Sequence[Outcome]) -> str:
    def of(name: str, unit: float = 1.0) -> dict[str, list[float]]:
        return {
            outcome.router: [getattr(worker, name) * unit for worker in outcome.workers]
            for outcome in outcomes
        }

    return document(
        "",
        [
            bars("requests, by worker", of("num_requests")),
            bars("prompt tokens computed, thousands, by worker", of("num_prefill_tokens", 1e-3)),
            bars("seconds in steps, by worker", of("busy_s")),
            bars("preemptions, by worker", of("num_preempted")),
        ],
    )
