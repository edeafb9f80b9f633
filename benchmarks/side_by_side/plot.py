"""The ratios of a run as an SVG of points and ranges, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.side_by_side.table import Comparison, Record, Row, comparisons

LINE, LABEL_WIDTH, PLOT_WIDTH, MARGIN = 20, 330, 480, 30
TICKS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MET, MISSED, PLAIN = "#2a7f4f", "#b3432b", "#4a5a6a"


def x_of(value: float) -> float:
    low, high = math.log(TICKS[0]), math.log(TICKS[-1])
    share = (math.log(max(value, 1e-9)) - low) / (high - low)
    return LABEL_WIDTH + min(1.0, max(0.0, share)) * PLOT_WIDTH


def color_of(one: Comparison) -> str:
    return {True: MET, False: MISSED, None: PLAIN}[one.is_met]


def svg(records: Sequence[Record]) -> str:
    """Our figure over theirs, median and range of the repetitions; green meets its goal, red does not."""
    rows = [one for one in comparisons(records) if one.ratio.lowest > 0]
    height = 2 * MARGIN + LINE * len(rows)
    width = LABEL_WIDTH + PLOT_WIDTH + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in TICKS:
        x = x_of(tick)
        stroke = "#888" if tick == 1.0 else "#ddd"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{MARGIN}" y2="{height - MARGIN}" stroke="{stroke}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{MARGIN - 8}" text-anchor="middle">{tick:g}</text>')
    for number, one in enumerate(rows):
        y = MARGIN + LINE * (number + 0.5)
        color, ratio = color_of(one), one.ratio
        parts.append(f'<text x="8" y="{y + 4:.1f}">{escape(f"{one.cell}  {one.row.unit}")}</text>')
        parts.append(
            f'<line x1="{x_of(ratio.lowest):.1f}" x2="{x_of(ratio.highest):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{color}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{x_of(ratio.median):.1f}" cy="{y}" r="4" fill="{color}"/>')
        parts += goal_mark(one.row, y)
    title = "ours / theirs"
    parts.append(f'<text x="{LABEL_WIDTH}" y="{height - 10}">{title}</text></svg>')
    return "\n".join(parts)


def goal_mark(row: Row, y: float) -> list[str]:
    goal = row.at_least if row.at_least is not None else row.at_most
    if goal is None:
        return []
    x = x_of(goal)
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 7}" y2="{y + 7}" stroke="#333" stroke-dasharray="2,2"/>'
    ]
