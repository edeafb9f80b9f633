"""A report as a picture: four panels in one SVG file, drawn without any library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from .record import RequestRecord
from .report import Report

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 40
_MAX_POINTS = 2000
_COLOURS = {"line": "#2563eb", "failed": "#dc2626", "axis": "#6b7280", "grid": "#e5e7eb", "text": "#111827"}

Point = tuple[float, float]


def plot(report: Report, records: Sequence[RequestRecord]) -> str:
    """An SVG document: TTFT, ITL and E2E by percentile, and TTFT over the time of sending."""
    measured = [record for record in records if not record.is_warmup]
    good = [record for record in measured if record.error is None]
    began_s = min((record.sent_s for record in measured), default=0.0)
    over_time = [(r.sent_s - began_s, r.ttft_s * 1e3) for r in good if r.ttft_s is not None]
    failed = [(r.sent_s - began_s, 0.0) for r in measured if r.error is not None]
    panels = [
        _curve("time to first token, ms", [r.ttft_s * 1e3 for r in good if r.ttft_s is not None]),
        _curve("inter-token latency, ms", [itl * 1e3 for r in good if (itl := r.itl_s) is not None]),
        _curve("end to end, ms", [r.e2e_s * 1e3 for r in good]),
        _scatter("time to first token, ms, by second of sending", over_time, failed),
    ]
    width, height = 2 * _WIDTH, 2 * _HEIGHT + 30
    title = (
        f"{report.settings.get('model')}: {report.num_ok} requests, {report.requests_per_s:.1f} requests/s, "
        f"{report.output_tokens_per_s:.0f} output tokens/s"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" fill="{_COLOURS["text"]}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT + 30})">{panel}</g>')
    return "\n".join([*parts, "</svg>\n"])


def ticks(limit: float) -> list[float]:
    """About five round numbers from 0 to at least ``limit``."""
    if limit <= 0:
        return [0.0, 1.0]
    magnitude = 1.0
    while magnitude * 10 <= limit:
        magnitude *= 10
    while magnitude > limit:
        magnitude /= 10
    step = next(step * magnitude for step in (0.2, 0.5, 1.0, 2.0) if limit <= step * magnitude * 5)
    return [round(number * step, 12) for number in range(int(-(-limit // step)) + 1)]


def _curve(title: str, values: Sequence[float]) -> str:
    """Values by percentile: how long the slowest n % took is read off its right end."""
    ordered = sorted(values)
    if not ordered:
        return _frame(title, [0.0, 100.0], [0.0, 1.0]) + _note("no values")
    steps = [round(i * (len(ordered) - 1) / 200) for i in range(201)]
    points = [(i / 2, ordered[at]) for i, at in enumerate(steps)]
    x_ticks, y_ticks = [0.0, 25.0, 50.0, 75.0, 100.0], ticks(ordered[-1])
    places = [_place(point, x_ticks[-1], y_ticks[-1]) for point in points]
    lines = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = f'<polyline points="{lines}" fill="none" stroke="{_COLOURS["line"]}" stroke-width="1.5"/>'
    return _frame(title, x_ticks, y_ticks, unit="%") + drawn


def _scatter(title: str, points: Sequence[Point], failed: Sequence[Point]) -> str:
    if not points and not failed:
        return _frame(title, [0.0, 1.0], [0.0, 1.0]) + _note("no values")
    x_ticks = ticks(max(x for x, _ in (*points, *failed)))
    y_ticks = ticks(max((y for _, y in points), default=0.0))
    dots: list[str] = []
    for colour, group in ((_COLOURS["line"], points), (_COLOURS["failed"], failed)):
        stride = -(-len(group) // _MAX_POINTS) or 1
        for point in group[::stride]:
            x, y = _place(point, x_ticks[-1], y_ticks[-1])
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{colour}" fill-opacity="0.6"/>')
    return _frame(title, x_ticks, y_ticks, unit=" s") + "".join(dots)


def _place(point: Point, x_limit: float, y_limit: float) -> Point:
    x, y = point
    return (
        _LEFT + x / x_limit * (_WIDTH - _LEFT - _RIGHT),
        _HEIGHT - _BOTTOM - y / y_limit * (_HEIGHT - _TOP - _BOTTOM),
    )


def _frame(title: str, x_ticks: Sequence[float], y_ticks: Sequence[float], unit: str = "") -> str:
    limits = x_ticks[-1], y_ticks[-1]
    parts = [f'<text x="{_LEFT}" y="{_TOP - 10}" font-weight="600">{escape(title)}</text>']
    for value in y_ticks:
        (left, y), (right, _) = (_place((x, value), *limits) for x in (0.0, limits[0]))
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{_COLOURS["grid"]}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, y = _place((value, 0.0), *limits)
        parts.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{value:g}{unit}</text>')
    corners = [_place(at, *limits) for at in ((0.0, limits[1]), (0.0, 0.0), (limits[0], 0.0))]
    for (x0, y0), (x1, y1) in pairwise(corners):
        parts.append(f'<path d="M{x0} {y0}L{x1} {y1}" stroke="{_COLOURS["axis"]}"/>')
    return "".join(parts)


def _note(text: str) -> str:
    return f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">{escape(text)}</text>'
