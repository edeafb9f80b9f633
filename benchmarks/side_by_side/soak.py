"""Long prompts for a long time, in turn on each side: does the frontend's memory stay flat?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.side_by_side.bodies import BodyKind
from benchmarks.side_by_side.cells import FAST, Cell
from benchmarks.side_by_side.loadgen import Load
from benchmarks.side_by_side.measure import Bench, Record
from benchmarks.side_by_side.stacks import Stack
from benchmarks.side_by_side.stats import slope

NUM_PROMPT_TOKENS = 200_000
NUM_BLOCKS = 65_536
"""Room for the prompts of all connections at once."""
CELL = Cell(
    name="soak",
    kind=BodyKind(num_prompt_tokens=NUM_PROMPT_TOKENS, num_output_tokens=1, stream=False),
    load=Load(concurrency=2, warm_s=1.0, measure_s=4.0),
    speedup=FAST,
    first_rate=40.0,
)
WARM_SHARE = 1 / 3
"""Of the samples, those left out of the slope: caches fill first."""


def run(bench: Bench, sides: Sequence[Stack], minutes: float) -> None:
    """One record per side and round, with the minutes since the start."""
    started = time.monotonic()
    probe = bench.probe(CELL.kind, sides)
    while time.monotonic() - started < minutes * 60:
        bench.run_once(CELL, sides, repetition=0, probe=probe)
        for side in sides:
            bench.emit(
                {
                    "kind": "soak",
                    "side": side.name,
                    "minute": (time.monotonic() - started) / 60,
                    "rss_mib": side.frontend_rss_mib(),
                }
            )


def markdown(records: Sequence[Record]) -> str:
    """Empty without a soak. Slopes are of the last two thirds."""
    samples: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record["kind"] == "soak":
            minute, rss_mib = record["minute"], record["rss_mib"]
            assert isinstance(minute, float)
            assert isinstance(rss_mib, float)
            samples.setdefault(str(record["side"]), []).append((minute, rss_mib))
    if not samples:
        return ""
    lines = [
        f"\nFrontend memory under prompts of {NUM_PROMPT_TOKENS:,} tokens:\n",
        "| side | minutes | first MiB | highest MiB | last MiB | slope, MiB/hour |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for side, points in samples.items():
        late = points[round(len(points) * WARM_SHARE) :]
        per_hour = (
            f"{slope([x for x, _ in late], [y for _, y in late]) * 60:+.1f}" if len(late) > 1 else "too short"
        )
        levels = [rss_mib for _, rss_mib in points]
        shown = " | ".join(f"{level:.0f}" for level in (levels[0], max(levels), levels[-1]))
        lines.append(f"| {side} | {points[-1][0]:.0f} | {shown} | {per_hour} |")
    return "\n".join([*lines, ""])
