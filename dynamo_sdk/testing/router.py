"""``check_router``: does anybody's router keep the promises of ``Router``?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from dynamo_sdk.interfaces import (
    Candidate,
    Freed,
    Overlap,
    PrefillDone,
    Routed,
    Router,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

from .report import Report, require, run_checks_sync, subject_of

_NUM_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class RouterBench:
    factory: Callable[[], Router]

    def decide(self, rounds: Sequence[tuple[RoutingRequest, list[Candidate]]]) -> list[RoutingDecision]:
        """What a new router decides in these rounds; it is told what became of each request."""
        router, decisions = self.factory(), []
        rng = Random(5)
        for now_s, (request, candidates) in enumerate(rounds):
            decision = router.select(request, candidates, RoutingContext(now_s=float(now_s), rng=rng))
            decisions.append(decision)
            worker_id = decision.worker_id
            router.observe(
                Routed(
                    request_id=request.request_id,
                    worker_id=worker_id,
                    role=request.role,
                    num_tokens=request.num_tokens,
                    num_cached_tokens=request.num_tokens // 2,
                ),
                float(now_s),
            )
            router.observe(PrefillDone(request_id=request.request_id, worker_id=worker_id), now_s + 0.1)
            router.observe(
                Freed(request_id=request.request_id, worker_id=worker_id, is_failure=now_s % 7 == 0),
                now_s + 0.2,
            )
        return decisions


def routing_rounds(seed: int = 0) -> list[tuple[RoutingRequest, list[Candidate]]]:
    """Requests, each with the workers of the moment: they come, go, report late or never, have ranks."""
    rng = Random(seed)
    return [
        (_request(rng, number), [_candidate(rng, name, rank) for name, rank in _seats(rng)])
        for number in range(_NUM_ROUNDS)
    ]


def chooses_a_candidate(bench: RouterBench) -> None:
    """The chosen worker and rank are those of a candidate, whoever comes and goes."""
    rounds = routing_rounds()
    for (_, candidates), decision in zip(rounds, bench.decide(rounds), strict=True):
        seats = [(candidate.worker_id, candidate.dp_rank) for candidate in candidates]
        chosen = (decision.worker_id, decision.dp_rank)
        require(chosen in seats, f"chose {chosen}, the candidates were {seats}")


def chooses_the_only_candidate(bench: RouterBench) -> None:
    """With one candidate there is no choice, however busy it is."""
    load = LoadSnapshot(at_s=0.0, num_running=10_000, num_waiting=10_000)
    only = Candidate(
        worker_id=WorkerId("only"), dp_rank=3, num_active_requests=10_000, load=load, load_at_s=0
    )
    (decision,) = bench.decide([(_request(Random(1), 0), [only])])
    require(
        (decision.worker_id, decision.dp_rank) == ("only", 3),
        f"chose {decision.worker_id} rank {decision.dp_rank}, the only candidate was 'only' rank 3",
    )


def chance_comes_from_the_context(bench: RouterBench) -> None:
    """Two new routers, given the same rounds and the same chance, decide the same: no clock, no
    randomness of their own."""
    rounds = routing_rounds(1)
    first, second = bench.decide(rounds), bench.decide(rounds)
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        require(
            (one.worker_id, one.dp_rank) == (two.worker_id, two.dp_rank),
            f"round {number} chose {one.worker_id}, then {two.worker_id}",
        )


def leaves_its_input_alone(bench: RouterBench) -> None:
    """``select`` changes neither the candidates nor the list of them."""
    rounds = routing_rounds(2)
    before = copy.deepcopy(rounds)
    bench.decide(rounds)
    require(rounds == before, "the list of candidates was changed")


def takes_any_sequence(bench: RouterBench) -> None:
    """Candidates may come as a tuple."""
    router, context = bench.factory(), RoutingContext(now_s=0.0, rng=Random(0))
    for request, candidates in routing_rounds(3)[:20]:
        router.select(request, tuple(candidates), context)


def explains_with_candidates_only(bench: RouterBench) -> None:
    """``costs`` speak of candidates, of each at most once, in numbers."""
    rounds = routing_rounds(4)
    for (_, candidates), decision in zip(rounds, bench.decide(rounds), strict=True):
        seats = {(candidate.worker_id, candidate.dp_rank) for candidate in candidates}
        explained = [(cost.worker_id, cost.dp_rank) for cost in decision.costs]
        strangers = set(explained) - seats
        require(not strangers, f"costs of {strangers}, who are no candidates")
        require(len(set(explained)) == len(explained), f"costs name a candidate twice: {explained}")
        for cost in decision.costs:
            for term in cost.terms:
                require(not math.isnan(term.value), f"the cost {term.name} of {cost.worker_id} is NaN")


def hears_of_strangers(bench: RouterBench) -> None:
    """``observe`` takes facts about requests and workers that the router has never seen."""
    router = bench.factory()
    worker_id = WorkerId("never-seen")
    router.observe(PrefillDone(request_id="?", worker_id=worker_id, num_cached_tokens=3), 1.0)
    router.observe(Freed(request_id="?", worker_id=worker_id), 2.0)
    router.observe(Freed(request_id="?", worker_id=worker_id, is_failure=True), 3.0)


def _request(rng: Random, number: int) -> RoutingRequest:
    return RoutingRequest(
        request_id=f"request-{number}",
        model="model",
        role=rng.choice(list(Role)),
        num_tokens=rng.randrange(1, 4000),
        block_size=rng.choice([None, 16]),
        session=rng.choice([None, "session-1", "session-2"]),
    )


def _seats(rng: Random) -> list[tuple[str, int]]:
    seats = [(name, rank) for name in "abcde" for rank in range(2)]
    return rng.sample(seats, rng.randrange(1, len(seats) + 1))


def _candidate(rng: Random, name: str, rank: int) -> Candidate:
    has_reported = rng.random() < 0.8
    num_blocks = 1000
    return Candidate(
        worker_id=WorkerId(name),
        dp_rank=rank,
        overlap=Overlap(device_blocks=rng.randrange(20), host_blocks=rng.randrange(5)),
        num_blocks=rng.choice([None, num_blocks]),
        num_active_requests=rng.randrange(20),
        num_active_tokens=rng.randrange(50_000),
        num_active_blocks=rng.randrange(num_blocks),
        recent_prefill_s=rng.random() * 10,
        prefill_s_per_token=rng.choice([0.0, 1e-4]),
        prefill_s_per_request=rng.random() * 0.1,
        decode_s_per_token=rng.random() * 0.1,
        decode_s_per_request=rng.random() * 10,
        num_other_requests=rng.randrange(3),
        load=LoadSnapshot(
            at_s=rng.random() * 100,
            num_running=rng.randrange(30),
            num_waiting=rng.randrange(5),
            num_waiting_tokens=rng.randrange(5000),
            num_free_blocks=rng.randrange(num_blocks),
            num_blocks=num_blocks,
        )
        if has_reported
        else None,
        load_at_s=rng.random() * 40 if has_reported else None,
    )


ROUTER_CHECKS = (
    chooses_a_candidate,
    chooses_the_only_candidate,
    chance_comes_from_the_context,
    leaves_its_input_alone,
    takes_any_sequence,
    explains_with_candidates_only,
    hears_of_strangers,
)


def check_router(factory: Callable[[], Router]) -> Report:
    """Run every router check. ``factory()`` makes a new router."""
    subject = subject_of(factory())
    return run_checks_sync(subject, ROUTER_CHECKS, RouterBench(factory))
