"""``loadgen.c``, built and run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("loadgen.c")
BODIES_EXHAUSTED = 3


class BodiesExhausted(Exception):
    """The server was faster than expected: more bodies are needed."""


class LoadFailed(Exception):
    """The window says nothing about the server: requests failed, or the load generator did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``quick_ack``: the client acknowledges at once; else it delays as clients do. ``stagger_s``: the first
    requests are spread over this time, which lies in the warm-up."""

    concurrency: int
    warm_s: float
    measure_s: float
    quick_ack: bool = False
    stagger_s: float = 0.0


Window = dict[str, float | None]
"""What ``loadgen.c`` printed, without its lists and texts; None where there was no sample."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``cpu_s`` is in the order of the pids asked for."""

    window: Window
    cpu_s: tuple[float, ...]


def build(folder: Path) -> Path:
    program = folder / "loadgen"
    subprocess.run(["cc", "-O2", "-o", program, SOURCE], check=True)
    return program


def run(program: Path, *, port: int, bodies: Path, load: Load, pids: Sequence[int]) -> Outcome:
    """One window. Raises `BodiesExhausted`, `LoadFailed`."""
    command = [str(program), "-P", str(port), "-b", str(bodies), "-c", str(load.concurrency)]
    command += ["-w", str(load.warm_s), "-d", str(load.measure_s), "-s", str(load.stagger_s)]
    command += ["-p", ",".join(map(str, pids)), *(["-q"] if load.quick_ack else [])]
    limit_s = 3 * (load.warm_s + load.measure_s) + 30
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode == BODIES_EXHAUSTED:
        raise BodiesExhausted(done.stderr.strip())
    if done.returncode:
        raise LoadFailed(done.stderr.strip())
    return read(json.loads(done.stdout))


def read(printed: dict[str, object]) -> Outcome:
    """Raises `LoadFailed` where a request failed or none ended."""
    if printed["num_errors"] or (not printed["num_events"] and not printed["num_done"]):
        raise LoadFailed(
            f"{printed['num_errors']} requests failed, {printed['num_done']} ended: {printed['last_error']}"
        )
    cpu_s = printed["cpu_s"]
    assert isinstance(cpu_s, list)
    window = {
        name: value for name, value in printed.items() if value is None or isinstance(value, int | float)
    }
    return Outcome(window, tuple(cpu_s))
