"""What a request, an event and a token cost us, as ratios to a loop timed in the same run, commit by commit.

A machine that is slower today makes the calibration loop slower too, so that ratios of different days can be
compared where microseconds cannot. Frontend and worker are the real processes, under the load of
``side_by_side/loadgen.c`` and with the simulated engine; the rest is called here. Figures are medians of
``--rounds``; every round times the loop anew.

    python -m benchmarks.costs              # print, compare with the last line of the history
    python -m benchmarks.costs --compare    # the same; exit status 1 if a cost grew beyond --factor
    python -m benchmarks.costs --record     # the same, and add a line to the history
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer

from benchmarks.side_by_side import loadgen, model, stacks
from benchmarks.side_by_side.bodies import BodyKind, BodyWriter
from benchmarks.side_by_side.cells import FAST
from benchmarks.side_by_side.loadgen import Load
from dynamo_sdk.preprocess import ModelPipeline
from dynamo_sdk.scheduling import Scheduler, SchedulerConfig
from dynamo_sdk.types import GenerateRequest, ModelRecord, SamplingParams, pack_tokens

ROOT = Path(__file__).resolve().parents[1]
HISTORY = Path(__file__).with_name("history") / "costs.jsonl"
PORT = 8210
NUM_SEQUENCES = 64
NUM_STEPS = 100
NUM_CALIBRATION_TURNS = 300_000

STREAM = BodyKind(num_prompt_tokens=128, num_output_tokens=128, stream=True)
WHOLE = BodyKind(num_prompt_tokens=128, num_output_tokens=1, stream=False)
LOADS = (("stream/16", STREAM, 16, 4_000), ("whole/1", WHOLE, 1, 6_000), ("whole/16", WHOLE, 16, 16_000))
"""Name, what is asked, connections, and more bodies than a window will take."""

Costs = dict[str, float]
"""By name: the cost over the time of one turn of the calibration loop."""


def calibration_s() -> float:
    """CPU time of a turn of a fixed loop: integers, a dictionary, bytes, calls, as in a server."""
    table: dict[int, bytes] = {}
    started = time.process_time()
    for number in range(NUM_CALIBRATION_TURNS):
        key = (number * 7919) & 1023
        table[key] = table.get(key, b"")[-24:] + number.to_bytes(4, "little")
    return (time.process_time() - started) / NUM_CALIBRATION_TURNS


def served_s(program: Path, stack: stacks.Stack, writer: BodyWriter, folder: Path) -> Costs:
    """CPU seconds of the two processes."""
    pids = (*stack.frontend_pids, *stack.worker_pids)
    costs = {}
    for name, kind, concurrency, num_bodies in LOADS:
        path = folder / "bodies.jsonl"
        writer.write(kind, num_bodies, path)
        load = Load(concurrency=concurrency, warm_s=0.5, measure_s=1.5, quick_ack=True)
        outcome = loadgen.run(program, port=stack.port, bodies=path, load=load, pids=pids)
        num_requests = outcome.window["num_done"]
        assert num_requests
        num = num_requests * kind.num_output_tokens
        unit = "token" if kind.stream else "request"
        costs[f"frontend/{name}/{unit}"] = sum(outcome.cpu_s[: len(stack.frontend_pids)]) / num
        costs[f"worker/{name}/{unit}"] = sum(outcome.cpu_s[len(stack.frontend_pids) :]) / num
    return costs


def timed(call: Callable[[], object], num: int) -> float:
    started = time.process_time()
    call()
    return (time.process_time() - started) / num


def tokenize_s(pipeline: ModelPipeline, writer: BodyWriter) -> float:
    """CPU time per token of prompts of 2,048 tokens that were not seen before."""
    kind = BodyKind(num_prompt_tokens=2048, num_output_tokens=1, stream=False)
    texts = [json.loads(body)["messages"][0]["content"] for body in writer.bodies(kind, 20)]
    encode = partial(pipeline.tokenizer.encode, add_special_tokens=False)
    return timed(lambda: [encode(text) for text in texts], len(texts) * kind.num_prompt_tokens)


def scheduler_s() -> float:
    """CPU time per sequence and step of a batch of `NUM_SEQUENCES` that decodes."""
    scheduler = Scheduler(
        SchedulerConfig(
            num_blocks=4096,
            block_size=16,
            max_num_seqs=NUM_SEQUENCES,
            max_num_batched_tokens=65536,
            context_length=4096,
        )
    )
    for number in range(NUM_SEQUENCES):
        prompt = pack_tokens(range(number * 128, number * 128 + 128))
        scheduler.add(
            GenerateRequest(
                request_id=str(number),
                model=stacks.MODEL,
                prompt=prompt,
                sampling=SamplingParams(max_tokens=NUM_STEPS + 2, ignore_eos=True),
            )
        )

    def steps() -> None:
        for _ in range(NUM_STEPS):
            step = scheduler.schedule()
            scheduler.complete(step, {part.request_id: 7 for part in step.sequences})

    scheduler.complete(step := scheduler.schedule(), {part.request_id: 7 for part in step.sequences})
    return timed(steps, NUM_STEPS * NUM_SEQUENCES)


def measure(num_rounds: int) -> Costs:
    with tempfile.TemporaryDirectory(prefix="costs-") as name:
        folder = Path(name)
        model.write(folder / "model")
        writer = BodyWriter(
            RawTokenizer.from_file(str(folder / "model" / "tokenizer.json")), model=stacks.MODEL
        )
        record = ModelRecord(
            name=stacks.MODEL, path=str(folder / "model"), context_length=model.CONTEXT_LENGTH
        )
        pipeline = ModelPipeline.load(record)
        program = loadgen.build(folder)
        settings = stacks.Settings(
            model=folder / "model",
            router="round-robin",
            speedup=FAST,
            context_length=model.CONTEXT_LENGTH,
            num_blocks=16384,
        )
        rounds: list[Costs] = []
        with stacks.ours(settings, tree=ROOT, port=PORT, folder=folder / "ours") as stack:
            for _ in range(num_rounds):
                turn_s = calibration_s()
                costs = served_s(program, stack, writer, folder)
                costs["tokenize/token"] = tokenize_s(pipeline, writer)
                costs["scheduler/sequence-step"] = scheduler_s()
                turn_s = statistics.mean((turn_s, calibration_s()))
                rounds.append({cost: value / turn_s for cost, value in costs.items()})
    return {cost: statistics.median(one[cost] for one in rounds) for cost in rounds[0]}


def grown(before: Mapping[str, float], after: Mapping[str, float], factor: float) -> list[str]:
    """The costs in both that are more than ``factor`` times what they were."""
    return [name for name, cost in after.items() if name in before and cost > before[name] * factor]


def last_costs(history: Path) -> tuple[str, Costs] | None:
    """The commit and the costs of the last line; None where there is none."""
    lines = history.read_text().splitlines() if history.exists() else []
    if not lines:
        return None
    record = json.loads(lines[-1])
    return record["commit"], record["costs"]


def commit() -> str:
    """Of the checkout, with a plus sign where it holds changes."""
    number, changes = (
        subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout
        for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
    )
    return number.strip() + ("+" if changes else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor", type=float, default=1.3)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    last = last_costs(HISTORY)
    costs = measure(arguments.rounds)
    print(f"turns of the calibration loop{'' if last is None else f', and the change since {last[0]}'}:")
    for name, cost in costs.items():
        change = f"{cost / last[1][name] - 1:+8.0%}" if last is not None and name in last[1] else ""
        print(f"{name:28}{cost:10.2f}{change}")
    if arguments.record:
        HISTORY.parent.mkdir(exist_ok=True)
        record = {"commit": commit(), "costs": {name: round(cost, 3) for name, cost in costs.items()}}
        with HISTORY.open("a") as file:
            file.write(json.dumps(record) + "\n")
    if arguments.compare and last is not None and (worse := grown(last[1], costs, arguments.factor)):
        sys.exit(f"more than {arguments.factor} times the cost at {last[0]}: {', '.join(worse)}")


if __name__ == "__main__":
    main()
