"""Our frontend and simulated engine next to NVIDIA Dynamo's, in one run.

    python -m benchmarks.side_by_side --dynamo VENV/bin/python [--quick] [--out FOLDER]

Writes cells.jsonl, table.md and plot.svg into FOLDER.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.side_by_side import loadgen, model, plot, stacks
from benchmarks.side_by_side.bodies import BodyWriter
from benchmarks.side_by_side.cells import FAMILIES, FULL, QUICK, cells_of
from benchmarks.side_by_side.measure import Bench, json_lines, read_records
from benchmarks.side_by_side.stacks import Settings
from benchmarks.side_by_side.table import markdown

ROOT = Path(__file__).resolve().parents[2]
OURS_PORT, DYNAMO_PORT = 8200, 8100
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
        "--families", default=",".join(FAMILIES), help=f"which of {', '.join(FAMILIES)}, separated by commas"
    )
    parser.add_argument("--repetitions", type=int, help="instead of the preset's")
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


def main() -> None:
    arguments = parse()
    enter_loopback()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scope = QUICK if arguments.quick else FULL
    cells = cells_of(arguments.families.split(","), scope)
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
        for speedup in dict.fromkeys(cell.speedup for cell in cells):
            settings = Settings(
                model=folder / "model",
                router=arguments.router,
                speedup=speedup,
                context_length=model.CONTEXT_LENGTH,
                num_blocks=NUM_BLOCKS,
            )
            with (
                stacks.dynamo(
                    settings, python=arguments.dynamo.absolute(), port=DYNAMO_PORT, folder=folder / "dynamo"
                ) as theirs,
                stacks.ours(
                    settings, tree=arguments.tree.absolute(), port=OURS_PORT, folder=folder / "ours"
                ) as ours,
            ):
                sides = (ours, theirs)
                bench.record_memory(sides, "idle", speedup)
                repetitions = arguments.repetitions or scope.repetitions
                bench.run([cell for cell in cells if cell.speedup == speedup], sides, repetitions)
                bench.record_memory(sides, "after-load", speedup)
    records = read_records(arguments.out / "cells.jsonl")
    table = markdown(records)
    (arguments.out / "table.md").write_text(table)
    (arguments.out / "plot.svg").write_text(plot.svg(records))
    print(table)


if __name__ == "__main__":
    main()
