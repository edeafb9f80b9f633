"""The cells in turn, both sides of each one after the other, repetition after repetition."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.side_by_side import loadgen
from benchmarks.side_by_side.bodies import BodyKind, BodyWriter
from benchmarks.side_by_side.cells import Cell, modelled_prefill_ms
from benchmarks.side_by_side.loadgen import BodiesExhausted, LoadFailed, Outcome
from benchmarks.side_by_side.probe import Probe, ask
from benchmarks.side_by_side.stacks import Stack

Figures = dict[str, float]
Record = dict[str, object]

SETTLE_S = 0.3
"""Between windows: the server before notices that its clients left."""
MAX_GROWTHS = 4


@dataclass(slots=True)
class Bench:
    """What every window needs. ``lock``: a file locked around each cell, where others use the machine too."""

    program: Path
    writer: BodyWriter
    folder: Path
    emit: Callable[[Record], None]
    lock: Path | None = None
    rates: dict[str, float] = field(default_factory=dict)
    """Requests per second to have bodies for, by cell."""

    def run(self, cells: Sequence[Cell], sides: Sequence[Stack], repetitions: int) -> None:
        probes = {kind: self.probe(kind, sides) for kind in dict.fromkeys(cell.kind for cell in cells)}
        for repetition, cell in itertools.product(range(repetitions), cells):
            order = sides if repetition % 2 == 0 else tuple(reversed(sides))
            self.run_once(cell, order, repetition=repetition, probe=probes[cell.kind])

    def run_once(self, cell: Cell, order: Sequence[Stack], *, repetition: int, probe: Probe) -> None:
        for side, outcome in self._run_cell(cell, order):
            self.emit(
                {
                    "kind": "cell",
                    "cell": cell.name,
                    "side": side.name,
                    "repetition": repetition,
                    "load_average": os.getloadavg()[0],
                    **figures_of(cell, outcome, side, probe),
                    "raw": outcome.window,
                }
            )

    def record_memory(self, sides: Sequence[Stack], moment: str, speedup: float) -> None:
        for side in sides:
            self.emit(
                {
                    "kind": "cell",
                    "cell": f"memory/{moment}/{'real' if speedup == 1.0 else 'fast'}-engine",
                    "side": side.name,
                    "repetition": 0,
                    "rss_mib": side.frontend_rss_mib(),
                }
            )

    def probe(self, kind: BodyKind, sides: Sequence[Stack]) -> Probe:
        """Sides that count a prompt differently are told apart; the first one's count is used."""
        (body,) = self.writer.bodies(kind, 1)
        found = [ask(side, body) for side in sides]
        for side, probe in zip(sides, found, strict=True):
            self.emit(
                {
                    "kind": "probe",
                    "side": side.name,
                    "num_prompt_tokens": probe.num_prompt_tokens,
                    "num_output_tokens": kind.num_output_tokens,
                    "num_events": probe.num_events,
                }
            )
        return found[0]

    def _run_cell(self, cell: Cell, order: Sequence[Stack]) -> list[tuple[Stack, Outcome]]:
        """Nothing where a side failed: a cell counts only with all of them."""
        path = self.folder / "bodies.jsonl"
        for _ in range(MAX_GROWTHS):
            rate = self.rates.setdefault(cell.name, cell.first_rate)
            duration_s = cell.load.warm_s + cell.load.measure_s
            self.writer.write(cell.kind, math.ceil(rate * duration_s) + 2 * cell.load.concurrency, path)
            try:
                with locked(self.lock):
                    return [(side, self._window(cell, side, path)) for side in order]
            except BodiesExhausted:
                self.rates[cell.name] = 2 * rate  # anew, with bodies no side has seen
            except LoadFailed as failure:
                self.emit({"kind": "failure", "cell": cell.name, "message": str(failure)})
                return []
        self.emit({"kind": "failure", "cell": cell.name, "message": "never enough bodies"})
        return []

    def _window(self, cell: Cell, side: Stack, bodies: Path) -> Outcome:
        time.sleep(SETTLE_S)
        pids = (*side.frontend_pids, *side.worker_pids)
        return loadgen.run(self.program, port=side.port, bodies=bodies, load=cell.load, pids=pids)


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def figures_of(cell: Cell, outcome: Outcome, side: Stack, probe: Probe) -> Figures:
    """Rates per second; CPU in microseconds per request, token, event; times in milliseconds."""
    window = {name: value for name, value in outcome.window.items() if value is not None}
    seconds, num_requests, num_events = window["seconds"], window["num_done"], window["num_events"]
    num_tokens = num_requests * cell.kind.num_output_tokens
    frontend_us = sum(outcome.cpu_s[: len(side.frontend_pids)]) * 1e6
    worker_us = sum(outcome.cpu_s[len(side.frontend_pids) :]) * 1e6
    figures = {
        "requests_per_s": num_requests / seconds,
        "frontend_cores": frontend_us / seconds / 1e6,
        "worker_cores": worker_us / seconds / 1e6,
        "client_cores": window["client_cpu_s"] / seconds,
    }
    if num_requests:
        figures["frontend_us_per_request"] = frontend_us / num_requests
        figures["worker_us_per_request"] = worker_us / num_requests
        figures["latency_ms_p50"] = window["latency_ms_p50"]
    if not cell.kind.stream:
        return figures
    figures["events_per_s"] = num_events / seconds
    figures["tokens_per_s"] = num_tokens / seconds
    if num_events:
        figures["frontend_us_per_event"] = frontend_us / num_events
        figures["worker_us_per_event"] = worker_us / num_events
    if num_tokens:
        figures["frontend_us_per_token"] = frontend_us / num_tokens
        figures["worker_us_per_token"] = worker_us / num_tokens
    for name in ("ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99", "gap_ms_max"):
        if name in window:
            figures[name] = window[name]
    if cell.speedup == 1.0 and cell.load.concurrency == 1 and "ttft_ms_p50" in window:
        figures["ttft_added_ms_p50"] = window["ttft_ms_p50"] - modelled_prefill_ms(probe.num_prompt_tokens)
    return figures


def json_lines(path: Path) -> Callable[[Record], None]:
    """What appends records to ``path``."""
    path.write_text("")

    def emit(record: Record) -> None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    return emit


def read_records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]
