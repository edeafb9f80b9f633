"""Panels of a drawing: curves, dots and bars in a frame with round numbers. SVG text, no library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 440, 260
TEXT_COLOUR = "#111827"
FAILED_COLOUR = "#dc2626"
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#0891b2", "#be185d", "#4b5563", "#65a30d")
"""Of series, in their order; they repeat."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 40
_MAX_POINTS = 2000
_LETTER_WIDTH = 6.5
_AXIS_COLOUR, _GRID_COLOUR = "#6b7280", "#e5e7eb"

Point = tuple[float, float]


def document(title: str, panels: Sequence[str]) -> str:
    """An SVG document, two panels to a row."""
    width, height = 2 * WIDTH, -(-len(panels) // 2) * HEIGHT + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" fill="{TEXT_COLOUR}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        parts.append(f'<g transform="translate({column * WIDTH} {row * HEIGHT + 30})">{panel}</g>')
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


def curves(title: str, series: Mapping[str, Sequence[float]]) -> str:
    """Values by percentile: how long the slowest n % took is read off the right end."""
    ordered = {name: sorted(values) for name, values in series.items() if values}
    if not ordered:
        return _frame(title, [0.0, 100.0], [0.0, 1.0]) + _note("no values")
    x_ticks, y_ticks = [0.0, 25.0, 50.0, 75.0, 100.0], ticks(max(values[-1] for values in ordered.values()))
    parts = [_frame(title, x_ticks, y_ticks, unit="%")]
    for name, values in ordered.items():
        steps = [round(i * (len(values) - 1) / 200) for i in range(201)]
        points = [(i / 2, values[at]) for i, at in enumerate(steps)]
        parts.append(_line(points, x_ticks[-1], y_ticks[-1], _colour(series, name)))
    return "".join([*parts, _legend(series)])


def lines(title: str, series: Mapping[str, Sequence[Point]], *, unit: str = " s") -> str:
    """Points in the order of x, joined."""
    points = [point for found in series.values() for point in found]
    if not points:
        return _frame(title, [0.0, 1.0], [0.0, 1.0]) + _note("no values")
    x_ticks, y_ticks = ticks(max(x for x, _ in points)), ticks(max(y for _, y in points))
    drawn = [
        _line(found, x_ticks[-1], y_ticks[-1], _colour(series, name))
        for name, found in series.items()
        if found
    ]
    return "".join([_frame(title, x_ticks, y_ticks, unit=unit), *drawn, _legend(series)])


def dots(
    title: str, points: Sequence[Point], failed: Sequence[Point] = (), *, colour: str = COLOURS[0]
) -> str:
    """Values over seconds, ``failed`` ones in red."""
    if not points and not failed:
        return _frame(title, [0.0, 1.0], [0.0, 1.0]) + _note("no values")
    x_ticks = ticks(max(x for x, _ in (*points, *failed)))
    y_ticks = ticks(max((y for _, y in points), default=0.0))
    drawn: list[str] = []
    for fill, group in ((colour, points), (FAILED_COLOUR, failed)):
        stride = -(-len(group) // _MAX_POINTS) or 1
        for point in group[::stride]:
            x, y = _place(point, x_ticks[-1], y_ticks[-1])
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{fill}" fill-opacity="0.6"/>')
    return _frame(title, x_ticks, y_ticks, unit=" s") + "".join(drawn)


def bars(title: str, series: Mapping[str, Sequence[float]]) -> str:
    """Groups of bars side by side: the n-th value of every series is in the n-th group."""
    num_groups = max((len(values) for values in series.values()), default=0)
    if not num_groups:
        return _frame(title, [0.0, 1.0], [0.0, 1.0]) + _note("no values")
    y_ticks = ticks(max((value for values in series.values() for value in values), default=0.0))
    bar_width = 0.8 / len(series)
    parts = [_frame(title, [], y_ticks, x_limit=float(num_groups))]
    for number, (name, values) in enumerate(series.items()):
        for group, value in enumerate(values):
            left, top = _place((group + 0.1 + number * bar_width, value), num_groups, y_ticks[-1])
            right, bottom = _place((group + 0.1 + (number + 1) * bar_width, 0.0), num_groups, y_ticks[-1])
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
                f'fill="{_colour(series, name)}"/>'
            )
    return "".join([*parts, _legend(series)])


def _colour(series: Iterable[str], name: str) -> str:
    return COLOURS[list(series).index(name) % len(COLOURS)]


def _legend(series: Iterable[str]) -> str:
    """Below the frame; needed only where there are several. Names keep their ends, which differ."""
    names = list(series)
    if len(names) < 2:
        return ""
    parts: list[str] = []
    room = (WIDTH - _LEFT - _RIGHT) / len(names)
    num_letters = max(4, int(room / _LETTER_WIDTH) - 2)
    for number, name in enumerate(names):
        x, y = _LEFT + number * room, HEIGHT - 6
        shown = name if len(name) <= num_letters else f"…{name[1 - num_letters :]}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 8}" width="8" height="8" fill="{_colour(names, name)}"/>'
            f'<text x="{x + 11:.1f}" y="{y}">{escape(shown)}</text>'
        )
    return "".join(parts)


def _line(points: Sequence[Point], x_limit: float, y_limit: float, colour: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(point, x_limit, y_limit) for point in points))
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _place(point: Point, x_limit: float, y_limit: float) -> Point:
    x, y = point
    return (
        _LEFT + x / x_limit * (WIDTH - _LEFT - _RIGHT),
        HEIGHT - _BOTTOM - y / y_limit * (HEIGHT - _TOP - _BOTTOM),
    )


def _frame(
    title: str, x_ticks: Sequence[float], y_ticks: Sequence[float], *, unit: str = "", x_limit: float = 0.0
) -> str:
    limits = x_ticks[-1] if x_ticks else x_limit, y_ticks[-1]
    parts = [f'<text x="{_LEFT}" y="{_TOP - 10}" font-weight="600">{escape(title)}</text>']
    for value in y_ticks:
        (left, y), (right, _) = (_place((x, value), *limits) for x in (0.0, limits[0]))
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{_GRID_COLOUR}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, y = _place((value, 0.0), *limits)
        parts.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{value:g}{unit}</text>')
    corners = [_place(at, *limits) for at in ((0.0, limits[1]), (0.0, 0.0), (limits[0], 0.0))]
    for (x0, y0), (x1, y1) in pairwise(corners):
        parts.append(f'<path d="M{x0} {y0}L{x1} {y1}" stroke="{_AXIS_COLOUR}"/>')
    return "".join(parts)


def _note(text: str) -> str:
    return f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{escape(text)}</text>'
