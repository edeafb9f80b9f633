"""Our frontend and simulated engine next to NVIDIA Dynamo's, in one run.

    python -m benchmarks.side_by_side --dynamo VENV/bin/python [--quick] [--out FOLDER]

Writes cells.jsonl, table.md and plot.svg into FOLDER.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.side_by_side import loadgen, model, plot, proxies, soak, stacks
from benchmarks.side_by_side.bodies import BodyWriter
from benchmarks.side_by_side.cells import FAMILIES, FAST, FULL, QUICK, Scope, cells_of, through_router
from benchmarks.side_by_side.measure import Bench, json_lines, read_records
from benchmarks.side_by_side.stacks import Settings, Stack
from benchmarks.side_by_side.table import markdown

ROOT = Path(__file__).resolve().parents[2]
OURS_PORT, DYNAMO_PORT, ROUTER_PORT = 8200, 8100, 8300
NUM_BLOCKS = 16384


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dynamo", type=Path, required=True, help="the interpreter of Dynamo's environment")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout of ours to measure")
    parser.add_argument("--out", type=Path, default=Path("side_by_side"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a rough look in under four minutes")
    parser.add_argument("--router", default="round-robin", help="of both sides")
    parser.add_argument(
        "--frontends", type=int, default=1, help="how many of our frontend processes share the port"
    )
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help=f"which of {', '.join(FAMILIES)}, separated by commas"
    )
    parser.add_argument(
        "--routers", type=Path, help="the interpreter of the peer routers' environment, to measure them too"
    )
    parser.add_argument("--soak-minutes", type=float, help="soak in long prompts instead of the cells")
    parser.add_argument("--repetitions", type=int, help="instead of the preset's")
    parser.add_argument(
        "--concurrencies", help="requests at a time, instead of the preset's, separated by commas"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the request bodies")
    parser.add_argument(
        "--lock", type=Path, help="lock this file around each cell, where others use the machine too"
    )
    return parser.parse_args()


def enter_loopback() -> None:
    """Run on in a network namespace that has a loopback device and nothing else.

    Dynamo's event plane listens on all interfaces whatever it is told.
    """
    if [name for _, name in socket.if_nameindex()] == ["lo"]:
        return
    command = ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else []), "sh", "-c"]
    command += ['ip link set lo up && exec "$@"', "sh", sys.executable, "-m", "benchmarks.side_by_side"]
    os.execvp("unshare", command + sys.argv[1:])


@dataclass(frozen=True, slots=True)
class Run:
    arguments: argparse.Namespace
    scope: Scope
    folder: Path
    bench: Bench

    @contextlib.contextmanager
    def sides(self, speedup: float, num_blocks: int = NUM_BLOCKS) -> Iterator[tuple[Stack, Stack]]:
        settings = Settings(
            model=self.folder / "model",
            router=self.arguments.router,
            speedup=speedup,
            context_length=model.CONTEXT_LENGTH,
            num_blocks=num_blocks,
            num_frontends=self.arguments.frontends,
        )
        tree, python = self.arguments.tree.absolute(), self.arguments.dynamo.absolute()
        with (
            stacks.ours(settings, tree=tree, port=OURS_PORT, folder=self.folder / "ours") as ours,
            stacks.dynamo(settings, python=python, port=DYNAMO_PORT, folder=self.folder / "dynamo") as theirs,
        ):
            yield ours, theirs

    def cells(self) -> None:
        cells = cells_of([name for name in self.arguments.families.split(",") if name], self.scope)
        repetitions = self.arguments.repetitions or self.scope.repetitions
        speedups = [cell.speedup for cell in cells] + ([FAST] if self.arguments.routers else [])
        for speedup in dict.fromkeys(speedups):
            with self.sides(speedup) as sides:
                self.bench.record_memory(sides, "idle", speedup)
                self.bench.run([cell for cell in cells if cell.speedup == speedup], sides, repetitions)
                self.bench.record_memory(sides, "after-load", speedup)
                if self.arguments.routers and speedup == FAST:
                    self.routers(sides[0], repetitions)

    def routers(self, ours: Stack, repetitions: int) -> None:
        python = self.arguments.routers.absolute()
        for name in proxies.MODULES:
            with proxies.router(
                name, python=python, port=ROUTER_PORT, behind=ours, folder=self.folder / "routers"
            ) as router:
                self.bench.run(through_router(name, self.scope), (ours, router), repetitions)

    def soak(self) -> None:
        with self.sides(FAST, soak.NUM_BLOCKS) as sides:
            soak.run(self.bench, sides, self.arguments.soak_minutes)


def main() -> None:
    arguments = parse()
    enter_loopback()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what was started is stopped too
    arguments.out.mkdir(parents=True, exist_ok=True)
    emit = json_lines(arguments.out / "cells.jsonl")
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as name:
        folder = Path(name)
        model.write(folder / "model")
        writer = BodyWriter(
            Tokenizer.from_file(str(folder / "model" / "tokenizer.json")),
            model=stacks.MODEL,
            seed=arguments.seed,
        )
        bench = Bench(loadgen.build(folder), writer, folder, emit, arguments.lock)
        scope = QUICK if arguments.quick else FULL
        if arguments.concurrencies:
            concurrencies = tuple(int(text) for text in arguments.concurrencies.split(","))
            scope = replace(scope, concurrencies=concurrencies)
        run = Run(arguments, scope, folder, bench)
        try:
            if arguments.soak_minutes:
                run.soak()
            else:
                run.cells()
        finally:
            report(arguments.out)


def report(out: Path) -> None:
    """The table and the plot of what has been measured, be it all or not."""
    records = read_records(out / "cells.jsonl")
    table = markdown(records) + soak.markdown(records)
    (out / "table.md").write_text(table)
    (out / "plot.svg").write_text(plot.svg(records))
    print(table)


if __name__ == "__main__":
    main()
