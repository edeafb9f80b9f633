"""Workers that serve prompts one after the other and keep every block they have seen; enough to show how a
router behaves over time. Times are in seconds, a token of a prompt takes ``S_PER_TOKEN``."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from dynamo_sdk.interfaces import Freed, Overlap, PrefillDone, Routed, Router, RoutingContext, RoutingRequest
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

BLOCK_SIZE = 16
S_PER_TOKEN = 1e-4
S_PER_REQUEST = 0.01


@dataclass(slots=True)
class Prompt:
    """``keys``: one per block. ``answer_s``: from its first token to its end."""

    at_s: float
    keys: Sequence[int]
    answer_s: float = 0.5


@dataclass(slots=True)
class ToyWorker:
    slowness: float = 1.0
    held: set[int] = field(default_factory=set)
    free_at_s: float = 0.0
    num_running: int = 0

    def num_held(self, keys: Sequence[int]) -> int:
        return next((number for number, key in enumerate(keys) if key not in self.held), len(keys))


class Held:
    """What the workers hold, as an index that is never late."""

    def __init__(self, workers: Sequence[ToyWorker]) -> None:
        self._workers = workers

    def match(self, keys: Sequence[int]) -> Mapping[int, Overlap]:
        found = {seat: worker.num_held(keys) for seat, worker in enumerate(self._workers)}
        return {seat: Overlap(device_blocks=num) for seat, num in found.items() if num}

    def drop(self, seat: int) -> None:
        raise AssertionError("nobody leaves")


@dataclass(slots=True)
class Outcome:
    """``chosen``: worker number per prompt. ``ttft_s``: likewise."""

    chosen: list[int] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)

    def share(self, worker: int) -> float:
        return self.chosen.count(worker) / len(self.chosen)


def serve(
    routers: Sequence[Router], prompts: Sequence[Prompt], workers: Sequence[ToyWorker], report_s: float = 0.1
) -> Outcome:
    """Each frontend has a router and a book of its own, and takes every n-th prompt. Workers report every
    ``report_s`` how many requests they have."""
    outcome, rng, names = Outcome(), Random(1), [WorkerId(str(number)) for number in range(len(workers))]
    books = [CandidateBook(Held(workers)) for _ in routers]
    for book in books:
        for name in names:
            book.join(name, block_size=BLOCK_SIZE, num_blocks=100_000)
    order = iter(range(10**9))
    events: list[tuple[float, int, str, int]] = [
        (prompt.at_s, next(order), "ask", i) for i, prompt in enumerate(prompts)
    ]
    end_s = prompts[-1].at_s
    events += [(number * report_s, next(order), "report", 0) for number in range(int(end_s / report_s) + 1)]
    heapq.heapify(events)
    while events:
        now_s, _, what, number = heapq.heappop(events)
        if what == "report":
            for name, worker in zip(names, workers, strict=True):
                for book in books:
                    book.reported(name, LoadSnapshot(at_s=now_s, num_running=worker.num_running), now_s)
            continue
        frontend = number % len(routers)
        router, book = routers[frontend], books[frontend]
        if what == "ask":
            prompt = prompts[number]
            num_tokens = len(prompt.keys) * BLOCK_SIZE + 1
            book.look_up(prompt.keys)
            candidates = book.candidates(names)
            request = RoutingRequest(
                request_id=str(number),
                model="m",
                role=Role.AGGREGATED,
                num_tokens=num_tokens,
                block_size=BLOCK_SIZE,
                block_keys=prompt.keys,
            )
            decision = router.select(request, candidates, RoutingContext(now_s=now_s, rng=rng))
            chosen = names.index(decision.worker_id)
            outcome.chosen.append(chosen)
            worker = workers[chosen]
            cached = book.cached_tokens(candidates[chosen], num_tokens, BLOCK_SIZE)
            fact = Routed(
                request_id=str(number),
                worker_id=decision.worker_id,
                role=Role.AGGREGATED,
                num_tokens=num_tokens,
                num_cached_tokens=cached,
            )
            book.observe(fact, now_s)
            router.observe(fact, now_s)
            prefill_s = S_PER_REQUEST + S_PER_TOKEN * (num_tokens - worker.num_held(prompt.keys) * BLOCK_SIZE)
            worker.free_at_s = max(now_s, worker.free_at_s) + prefill_s * worker.slowness
            worker.held.update(prompt.keys)
            worker.num_running += 1
            outcome.ttft_s.append(worker.free_at_s - now_s)
            heapq.heappush(events, (worker.free_at_s, next(order), "first", number))
            heapq.heappush(events, (worker.free_at_s + prompt.answer_s, next(order), "end", number))
            continue
        worker_id = names[outcome.chosen[number]]
        done: PrefillDone | Freed
        if what == "first":
            done = PrefillDone(request_id=str(number), worker_id=worker_id)
        else:
            workers[outcome.chosen[number]].num_running -= 1
            done = Freed(request_id=str(number), worker_id=worker_id, num_output_tokens=20)
        book.observe(done, now_s)
        router.observe(done, now_s)
    return outcome


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
