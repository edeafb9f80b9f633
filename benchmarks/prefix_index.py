"""What the index of prefixes costs, alone or in one run with NVIDIA Dynamo's ``RadixTree`` binding.

    taskset -c 0 python benchmarks/prefix_index.py [--dynamo-python VENV/bin/python] [--blocks 100000 1000000]

Each cell (index, workload, workers, blocks, prompt length) is a fresh process, so that memory is its own; the
same seed gives every index the same blocks. Both get what they would get over a wire, and decode it: the
binding reads JSON, ours a msgpack ``StoredDigest``. Both are asked with block hashes, which ours makes keys
of.

=========  ===========================================================================================
workload   sequences of ``depth`` blocks
=========  ===========================================================================================
unique     each on one worker
shared     groups of 32 share the first half, each is on four workers
=========  ===========================================================================================

Columns: events stored per second, and bytes of resident memory per block stored (with names, and everything
else that removals need); microseconds (median / 99th percentile) to match a cached sequence (hit), one
whose second half is new (half) and one that is all new (miss); blocks removed per second, from the ends of
sequences. ``tokens``: hashing and matching prompts of 16,384 tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
GROUP = 32
COPIES = 4
NUM_PROMPT_TOKENS = 16_384
BUDGET_S = 0.6  # per kind of query


@dataclass(frozen=True)
class Cell:
    """One process's work."""

    index: str
    workload: str
    workers: int
    blocks: int
    depth: int
    blocks_per_event: int


class Index(ABC):
    """One index behind one face. ``prepare_*`` is what the sender does, and not timed."""

    @abstractmethod
    def prepare_store(
        self, number: int, parent: int | None, names: array[int], hashes: array[int]
    ) -> Any: ...

    @abstractmethod
    def prepare_remove(self, number: int, names: array[int]) -> Any: ...

    @abstractmethod
    def prepare_query(self, hashes: array[int]) -> Any: ...

    @abstractmethod
    def apply(self, worker: int, message: Any) -> None: ...

    @abstractmethod
    def match(self, query: Any) -> Any: ...

    @abstractmethod
    def match_tokens(self, tokens: Any, block_size: int) -> Any: ...

    @abstractmethod
    def prepare_tokens(self, tokens: list[int]) -> Any: ...

    def settle(self) -> None:
        """Return when everything applied can be matched."""


class DynamoIndex(Index):
    """Dynamo's binding; ``event_id`` numbers its events."""

    def __init__(self) -> None:
        from dynamo._core import RadixTree, compute_block_hash_for_seq  # type: ignore[import-not-found]

        self._tree = RadixTree()
        self._hash = compute_block_hash_for_seq

    def prepare_store(self, number: int, parent: int | None, names: array[int], hashes: array[int]) -> bytes:
        blocks = [
            {"block_hash": name, "tokens_hash": local} for name, local in zip(names, hashes, strict=True)
        ]
        return _json(number, {"stored": {"parent_hash": parent, "blocks": blocks}})

    def prepare_remove(self, number: int, names: array[int]) -> bytes:
        return _json(number, {"removed": {"block_hashes": names.tolist()}})

    def prepare_query(self, hashes: array[int]) -> list[int]:
        return hashes.tolist()

    def apply(self, worker: int, message: bytes) -> None:
        self._tree.apply_event(worker, message)

    def match(self, query: list[int]) -> Any:
        return self._tree.find_matches(query).scores

    def prepare_tokens(self, tokens: list[int]) -> list[int]:
        return tokens

    def match_tokens(self, tokens: list[int], block_size: int) -> Any:
        return self._tree.find_matches(self._hash(tokens, block_size)).scores

    def settle(self) -> None:
        self._tree.find_matches([1])  # its thread takes calls in turn


def _json(number: int, data: dict[str, Any]) -> bytes:
    return json.dumps({"event_id": number, "data": data}).encode()


class OurIndex(Index):
    """``PrefixIndex``."""

    def __init__(self) -> None:
        import msgspec

        from dynamo_sdk.kv import PrefixIndex, prefix_keys
        from dynamo_sdk.kv.prefix_keys import extend_keys
        from dynamo_sdk.types import KVDigest, RemovedDigest, StoredDigest, pack_tokens

        self._index = PrefixIndex()
        self._stored, self._removed = StoredDigest, RemovedDigest
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(KVDigest).decode
        self._extend_keys, self._prefix_keys, self._pack = extend_keys, prefix_keys, pack_tokens

    def prepare_store(self, number: int, parent: int | None, names: array[int], hashes: array[int]) -> bytes:
        return self._encode(self._stored(names=names.tobytes(), hashes=hashes.tobytes(), parent=parent))

    def prepare_remove(self, number: int, names: array[int]) -> bytes:
        return self._encode(self._removed(names=names.tobytes()))

    def prepare_query(self, hashes: array[int]) -> bytes:
        return hashes.tobytes()

    def apply(self, worker: int, message: bytes) -> None:
        self._index.apply(worker, self._decode(message))

    def match(self, query: bytes) -> Any:
        return self._index.match(self._extend_keys(0, 0, query))

    def prepare_tokens(self, tokens: list[int]) -> bytes:
        return self._pack(tokens)

    def match_tokens(self, tokens: bytes, block_size: int) -> Any:
        return self._index.match(self._prefix_keys(tokens, block_size))


INDEXES: dict[str, type[Index]] = {"dynamo": DynamoIndex, "ours": OurIndex}


@dataclass(frozen=True)
class Sequence:
    names: array[int]
    hashes: array[int]
    workers: list[int]


def sequences(cell: Cell, rng: random.Random) -> Iterator[Sequence]:
    """As many as make ``cell.blocks`` stored blocks. A name stands for its block and all before it."""
    num_stored = 0
    is_shared = cell.workload == "shared"
    half = cell.depth // 2 if is_shared else 0
    while num_stored < cell.blocks:
        common_names, common_hashes = words(rng, half), words(rng, half)
        for _ in range(GROUP if is_shared else 1):
            yield Sequence(
                names=common_names + words(rng, cell.depth - half),
                hashes=common_hashes + words(rng, cell.depth - half),
                workers=rng.sample(range(cell.workers), COPIES if is_shared else 1),
            )
            num_stored += cell.depth * (COPIES if is_shared else 1)
            if num_stored >= cell.blocks:
                return


def words(rng: random.Random, num: int) -> array[int]:
    return array("Q", rng.randbytes(num * 8))


def run_cell(cell: Cell) -> dict[str, float]:
    rng = random.Random(1)
    index = INDEXES[cell.index]()
    events: list[tuple[int, Any]] = []
    removals: list[tuple[int, Any]] = []
    sample: list[Sequence] = []
    num_blocks = 0
    cut = cell.depth // 2 if cell.workload == "shared" else 0  # what siblings share stays
    for number, sequence in enumerate(sequences(cell, rng)):
        for worker in sequence.workers:
            for start in range(0, cell.depth, cell.blocks_per_event):
                part = slice(start, start + cell.blocks_per_event)
                parent = sequence.names[start - 1] if start else None
                message = index.prepare_store(
                    len(events), parent, sequence.names[part], sequence.hashes[part]
                )
                events.append((worker, message))
            num_blocks += cell.depth
            if number % 10 == 0:
                gone = sequence.names[cut:]
                gone.reverse()
                removals.append((worker, index.prepare_remove(len(events), gone)))
        if len(sample) < 400:
            sample.append(sequence)
        else:
            sample[rng.randrange(400)] = sequence
    resident = resident_bytes()
    started_s = time.perf_counter()
    for worker, message in events:
        index.apply(worker, message)
    index.settle()
    took_s = time.perf_counter() - started_s
    found = {
        "store_events_per_s": len(events) / took_s,
        "store_blocks_per_s": num_blocks / took_s,
        "bytes_per_block": (resident_bytes() - resident) / num_blocks,
    }
    middle = cell.depth // 2
    queries = {
        "hit": [sequence.hashes for sequence in sample],
        "half": [sequence.hashes[:middle] + words(rng, cell.depth - middle) for sequence in sample],
        "miss": [words(rng, cell.depth) for _ in sample],
    }
    for kind, prompts in queries.items():
        prepared = [index.prepare_query(hashes) for hashes in prompts]
        found |= percentiles(kind, index.match, [(query,) for query in prepared])
        found[f"{kind}_workers"] = sum(len(index.match(query)) for query in prepared) / len(prepared)
    started_s = time.perf_counter()
    for worker, message in removals:
        index.apply(worker, message)
    index.settle()
    found["remove_blocks_per_s"] = len(removals) * (cell.depth - cut) / (time.perf_counter() - started_s)
    return found


def run_tokens(index: Index) -> dict[str, float]:
    """Hash and match prompts, of which a worker has stored nothing: the walk is the hit's above."""
    rng = random.Random(2)
    found: dict[str, float] = {}
    for block_size in (16, 64):
        prompts = [
            index.prepare_tokens([rng.randrange(32_000) for _ in range(NUM_PROMPT_TOKENS)]) for _ in range(50)
        ]
        found |= percentiles(f"tokens_{block_size}", index.match_tokens, [(p, block_size) for p in prompts])
    return found


def percentiles(kind: str, call: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> dict[str, float]:
    """Microseconds per call; each call is timed."""
    times: list[float] = []
    now = time.perf_counter
    end_s = now() + BUDGET_S
    while not times or now() < end_s:
        for args in arguments:
            begin = now()
            call(*args)
            times.append(now() - begin)
    times.sort()
    return {
        f"{kind}_p50_us": times[len(times) // 2] * 1e6,
        f"{kind}_p99_us": times[len(times) * 99 // 100] * 1e6,
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(python: str, job: dict[str, Any]) -> dict[str, float]:
    """Run one cell in a process of its own, with this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [python, __file__, "--job", json.dumps(job)]
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dynamo-python", help="an interpreter that can import dynamo._core; measured too")
    parser.add_argument("--workloads", nargs="+", default=["unique", "shared"])
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--blocks", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--depth", type=int, nargs="+", default=[128, 1024, 8192], help="blocks per prompt")
    parser.add_argument("--blocks-per-event", type=int, default=16)
    parser.add_argument("--json", type=Path, help="append one line per cell to this file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        gc.disable()  # the events of the test are many objects; no frontend has them
        found = (
            run_tokens(INDEXES[job["index"]]()) if job["kind"] == "tokens" else run_cell(Cell(**job["cell"]))
        )
        print(json.dumps(found))
        return
    pythons = {"ours": sys.executable}
    if options.dynamo_python:
        pythons["dynamo"] = options.dynamo_python
    for name, python in pythons.items():
        found = measure(python, {"kind": "tokens", "index": name})
        print(f"{name:7} {NUM_PROMPT_TOKENS} tokens, hash and match:", end="")
        for size in (16, 64):
            print(f"   blocks of {size}: {found[f'tokens_{size}_p50_us']:.0f} us", end="")
        print()
    print(
        f"{'index':7}{'workload':>9}{'workers':>8}{'blocks':>9}{'depth':>6}{'events/s':>10}{'B/block':>9}"
        f"{'hit us':>15}{'half us':>15}{'miss us':>15}{'removed/s':>11}"
    )
    for workload in options.workloads:
        for blocks in options.blocks:
            for depth in options.depth:
                for workers in options.workers:
                    for name, python in pythons.items():
                        cell = Cell(name, workload, workers, blocks, depth, options.blocks_per_event)
                        found = measure(python, {"kind": "cell", "index": name, "cell": asdict(cell)})
                        print_row(cell, found)
                        if options.json:
                            with options.json.open("a") as file:
                                file.write(json.dumps({**asdict(cell), **found}) + "\n")


def print_row(cell: Cell, found: dict[str, float]) -> None:
    times = "".join(
        f"{found[f'{kind}_p50_us']:>8.1f}/{found[f'{kind}_p99_us']:<6.0f}" for kind in ("hit", "half", "miss")
    )
    print(
        f"{cell.index:7}{cell.workload:>9}{cell.workers:>8}{cell.blocks:>9}{cell.depth:>6}"
        f"{found['store_events_per_s']:>10.0f}{found['bytes_per_block']:>9.1f}{times}"
        f"{found['remove_blocks_per_s']:>11.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
