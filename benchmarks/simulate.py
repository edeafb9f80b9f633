"""How fast a simulation runs, on one core, and how close it is to NVIDIA Dynamo's offline replay.

    python -m benchmarks.simulate                       # the reference workloads
    python -m benchmarks.simulate --trace hour.jsonl    # a trace of one's own, too

Wall time of a whole run, with the books checked at its end; the best of ``--rounds``.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.reference_traces import zipf_prompts
from dynamo_sdk.bench.report import Targets
from dynamo_sdk.engines.mocker import MockerConfig
from dynamo_sdk.plugins import Registry
from dynamo_sdk.simulate import FleetSpec, PoolSpec, SimOptions, Workload, simulate
from dynamo_sdk.simulate.report import PolicyReport, make_report
from dynamo_sdk.simulate.traces import read_workload
from dynamo_sdk.types import Role

HEAD = (
    "workload              policy         requests  wall s  requests/min  cached  TTFT ms  TTFT p99  gap ms"
)


def fleet(policy: str, *, num_workers: int, num_blocks: int) -> FleetSpec:
    registry = Registry.of()
    pool = PoolSpec(
        service="Model",
        role=Role.AGGREGATED,
        num_replicas=num_workers,
        config=MockerConfig(num_blocks=num_blocks),
    )
    return FleetSpec(pools=(pool,), router_name=policy, new_router=lambda role: registry.build_router(policy))


def measure(workload: Workload, spec: FleetSpec, num_rounds: int) -> tuple[float, PolicyReport]:
    seconds: list[float] = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        outcome = simulate(workload, spec, SimOptions(seed=1))
        seconds.append(time.perf_counter() - started)
    (policy,) = make_report(workload, [outcome], targets=Targets(), settings={}).policies
    return min(seconds), policy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--policies", default="round-robin,least-loaded,kv")
    parser.add_argument("--workers", type=int, default=16, help="for --trace")
    parser.add_argument("--blocks", type=int, default=16384, help="per worker, for --trace")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    small = {"num_workers": 8, "num_blocks": 2048}
    cells = [(zipf_prompts(3000, rate=24), small), (zipf_prompts(6000, rate=60), small)]
    if arguments.trace is not None:
        size = {"num_workers": arguments.workers, "num_blocks": arguments.blocks}
        cells.append((read_workload(arguments.trace), size))
    known = Registry.of().routers
    print(HEAD)
    for workload, size in cells:
        for policy in arguments.policies.split(","):
            if policy not in known:
                continue
            wall_s, found = measure(workload, fleet(policy, **size), arguments.rounds)
            assert found.ttft_ms is not None
            assert found.gap_ms is not None
            print(
                f"{workload.name:<20.20}  {policy:<13}  {found.num_requests:>8}  {wall_s:>6.2f}  "
                f"{found.num_requests / wall_s * 60:>12,.0f}  {found.reuse.with_restarts:.4f}  "
                f"{found.ttft_ms.mean:>7.1f}  {found.ttft_ms.p99:>8.1f}  {found.gap_ms.mean:>6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
