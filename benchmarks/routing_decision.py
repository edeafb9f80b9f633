"""What one routing decision costs: hash the prompt, look it up, score, pick.

    taskset -c 0 python benchmarks/routing_decision.py [--workers 64] [--tokens 4096] [--block-size 16]

Workers hold a part of the prompts that are asked for, and a request is under way on each; every decision is
of another prompt. Times are CPU time in microseconds; garbage is collected as seldom as in a frontend.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from random import Random

from dynamo_sdk.interfaces import Routed, Router, RoutingContext, RoutingRequest
from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.routing.dynamo_kv import DynamoKvRouter
from dynamo_sdk.routing.kv import KvRouter
from dynamo_sdk.routing.policies import LeastLoadedRouter, PowerOfTwoRouter, RoundRobinRouter
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

ROUTERS: dict[str, Callable[[], Router]] = {
    "kv": KvRouter,
    "dynamo-kv": DynamoKvRouter,
    "least-loaded": LeastLoadedRouter,
    "power-of-two": PowerOfTwoRouter,
    "round-robin": RoundRobinRouter,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=2000)
    options = parser.parse_args()
    rng = Random(1)
    prompts = [rng.randbytes(4 * options.tokens) for _ in range(options.prompts)]
    print(f"{options.workers} workers, {options.tokens} tokens, blocks of {options.block_size}")
    print(f"{'router':14} {'p50':>8} {'p99':>8} {'max':>8}   of which hash p50, look-up p50, select p50")
    for name, factory in ROUTERS.items():
        show(name, measure(factory(), prompts, options.workers, options.block_size, rng))


def measure(
    router: Router, prompts: list[bytes], num_workers: int, block_size: int, rng: Random
) -> list[tuple[float, float, float]]:
    """Seconds of each stage, per prompt."""
    index = PrefixIndex()
    book = CandidateBook(index, remembers_decisions=True)
    names = [WorkerId(f"worker-{number}") for number in range(num_workers)]
    for name in names:
        book.join(name, block_size=block_size, num_blocks=10_000)
        book.hears_events(name, True)
        book.reported(
            name, LoadSnapshot(at_s=0.0, num_blocks=10_000, num_free_blocks=rng.randrange(10_000)), 0.0
        )
    for number, prompt in enumerate(prompts):
        for seat in rng.sample(range(num_workers), 4):
            depth = rng.randrange(len(prompt) // 2, len(prompt))
            index.store_prefix(seat, prefix_keys(prompt[: depth // 4 * 4], block_size))
        if number < num_workers:
            book.observe(
                Routed(
                    request_id=f"busy-{number}",
                    worker_id=names[number],
                    role=Role.AGGREGATED,
                    num_tokens=rng.randrange(1, 8000),
                ),
                0.0,
            )
    candidates, context = book.candidates(names), RoutingContext(now_s=1.0, rng=rng)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    times = []
    for number, prompt in enumerate(prompts):
        start = time.thread_time()
        keys = prefix_keys(prompt, block_size) if router.uses_overlap else ()
        hashed = time.thread_time()
        if router.uses_overlap:
            book.look_up(keys, 1.0)
        found = time.thread_time()
        router.select(
            RoutingRequest(
                request_id=str(number),
                model="m",
                role=Role.AGGREGATED,
                num_tokens=len(prompt) // 4,
                block_size=block_size,
                block_keys=keys,
            ),
            candidates,
            context,
        )
        times.append((hashed - start, found - hashed, time.thread_time() - found))
    gc.unfreeze()
    return times


def show(name: str, times: list[tuple[float, float, float]]) -> None:
    def micros(values: list[float], share: float) -> float:
        return 1e6 * sorted(values)[min(len(values) - 1, int(share * len(values)))]

    whole = [sum(parts) for parts in times]
    stages = [f"{micros([parts[stage] for parts in times], 0.5):.1f}" for stage in range(3)]
    print(
        f"{name:14} {micros(whole, 0.5):8.1f} {micros(whole, 0.99):8.1f} {micros(whole, 1.0):8.1f}   "
        + ", ".join(stages)
    )


if __name__ == "__main__":
    main()
