"""``check_router``: does anybody's router keep the promises of ``Router``?"""

from __future__ import annotations

import copy
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import msgspec

from dynamo_sdk.interfaces import (
    Candidate,
    Freed,
    Overlap,
    PrefillDone,
    Routed,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

from .kit import Kit
from .places import Subject
from .report import CheckFailed, Report, require

_NUM_ROUNDS = 200
_NUM_REMEMBERED = 2000


@dataclass(frozen=True, slots=True)
class RouterBench:
    factory: Callable[[], Router]

    def decide(
        self, rounds: Iterable[tuple[RoutingRequest, list[Candidate]]], *, is_explaining: bool = False
    ) -> list[RoutingDecision]:
        """What a new router decides in these rounds; it is told what became of each request."""
        router, decisions = self.factory(), []
        rng = Random(5)
        for now_s, (request, candidates) in enumerate(rounds):
            context = RoutingContext(now_s=float(now_s), rng=rng, is_explaining=is_explaining)
            decision = router.select(request, candidates, context)
            decisions.append(decision)
            worker_id = decision.worker_id
            router.observe(_routed(request, worker_id), float(now_s))
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
    """The chosen worker and rank are those of a candidate, whoever comes and goes.

    Anybody else may be gone, be full, or serve another model. Return the ``worker_id`` and ``dp_rank`` of
    one of ``candidates``, also when a session or a cache speaks for another.
    """
    rounds = routing_rounds()
    for (_, candidates), decision in zip(rounds, bench.decide(rounds), strict=True):
        seats = [(candidate.worker_id, candidate.dp_rank) for candidate in candidates]
        chosen = (decision.worker_id, decision.dp_rank)
        require(chosen in seats, f"chose {chosen}, the candidates were {seats}")


def chooses_the_only_candidate(bench: RouterBench) -> None:
    """With one candidate there is no choice, however busy it is.

    A router is asked after admission; refusing is not its business. Pass the rank on too.
    """
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
    randomness of their own.

    Simulation, replay and a router's tests need this. Use ``context.rng`` and ``context.now_s``, and no
    set or dict order that depends on hashes of text.
    """
    rounds = routing_rounds(1)
    first, second = bench.decide(rounds), bench.decide(rounds)
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        require(
            (one.worker_id, one.dp_rank) == (two.worker_id, two.dp_rank),
            f"round {number} chose {one.worker_id}, then {two.worker_id}",
        )


def leaves_its_input_alone(bench: RouterBench) -> None:
    """``select`` changes neither the candidates nor the list of them.

    The candidates are the frontend's own books, kept current in place. Use ``sorted`` and ``min`` instead of
    ``sort`` and assignment.
    """
    rounds = routing_rounds(2)
    before = copy.deepcopy(rounds)
    bench.decide(rounds)
    require(rounds == before, "the list of candidates was changed")


def takes_any_sequence(bench: RouterBench) -> None:
    """Candidates may come as a tuple.

    Filters and tests pass tuples. Use nothing but iteration, indexing and ``len``.
    """
    router, context = bench.factory(), RoutingContext(now_s=0.0, rng=Random(0))
    for request, candidates in routing_rounds(3)[:20]:
        router.select(request, tuple(candidates), context)


def keeps_no_candidate(bench: RouterBench) -> None:
    """When ``select`` and ``observe`` have returned, the router refers to no candidate.

    They change in place, so what was kept is not what was seen; and whoever left would never be freed. Keep
    ids and numbers.
    """
    router = bench.factory()
    request, candidates = routing_rounds(5)[0]
    before = [sys.getrefcount(candidate) for candidate in candidates]
    for now_s in range(3):
        router.select(request, candidates, RoutingContext(now_s=float(now_s), rng=Random(now_s)))
    after = [sys.getrefcount(candidate) for candidate in candidates]
    kept = [c.worker_id for c, one, two in zip(candidates, before, after, strict=True) if two > one]
    require(not kept, f"the router still refers to the candidates {', '.join(kept)}")


def explains_with_candidates_only(bench: RouterBench) -> None:
    """``costs`` speak of candidates, of each at most once, in numbers.

    ``dynamo-sdk explain`` and the decision log show them. Leave ``costs`` empty rather than guess.
    """
    rounds = routing_rounds(4)
    for (_, candidates), decision in zip(rounds, bench.decide(rounds, is_explaining=True), strict=True):
        seats = {(candidate.worker_id, candidate.dp_rank) for candidate in candidates}
        explained = [(cost.worker_id, cost.dp_rank) for cost in decision.costs]
        strangers = set(explained) - seats
        require(not strangers, f"costs of {strangers}, who are no candidates")
        require(len(set(explained)) == len(explained), f"costs name a candidate twice: {explained}")
        for cost in decision.costs:
            for term in cost.terms:
                require(not math.isnan(term.value), f"the cost {term.name} of {cost.worker_id} is NaN")


def explaining_changes_nothing(bench: RouterBench) -> None:
    """With ``is_explaining`` the same candidate is chosen.

    Otherwise the explanation is one of another decision. Draw no chance for the explanation's sake.
    """
    rounds = routing_rounds(6)
    silent, explained = bench.decide(rounds), bench.decide(rounds, is_explaining=True)
    for number, (one, two) in enumerate(zip(silent, explained, strict=True)):
        require(
            (one.worker_id, one.dp_rank) == (two.worker_id, two.dp_rank),
            f"round {number} chose {one.worker_id}, explained {two.worker_id}",
        )


def decisions_are_data(bench: RouterBench) -> None:
    """A decision can be written down as JSON and read back equal.

    Decisions cross processes and are replayed; nothing is ever pickled. Put text and numbers into it.
    """
    for decision in bench.decide(routing_rounds(7)[:40], is_explaining=True):
        try:
            copy_of_it = msgspec.json.decode(msgspec.json.encode(decision), type=RoutingDecision)
        except (msgspec.MsgspecError, TypeError) as error:
            raise CheckFailed(f"{decision} is no plain data: {error}") from error
        require(copy_of_it == decision, f"{decision} came back as {copy_of_it}")


def chooses_among_512(bench: RouterBench) -> None:
    """512 candidates are as good as two.

    Large fleets have as many seats (workers times ranks). Keep no table of a fixed size.
    """
    rng = Random(8)
    candidates = [_candidate(rng, f"worker-{number}", 0) for number in range(512)]
    names = {candidate.worker_id for candidate in candidates}
    for decision in bench.decide([(_request(rng, number), candidates) for number in range(8)]):
        require(decision.worker_id in names, f"chose {decision.worker_id}, who is no candidate")


def lets_workers_leave(bench: RouterBench) -> None:
    """Workers that left, with requests on them, do not matter to those who stay or come.

    A worker can die at any time, and its ``Freed`` facts come later. Look up what you remember of a worker
    with a default.
    """
    rng = Random(9)
    router = bench.factory()
    on_those_who_leave = []
    for now_s in range(20):
        request = _request(rng, now_s)
        old = [_candidate(rng, name, 0) for name in "abc"]
        decision = router.select(request, old, RoutingContext(now_s=float(now_s), rng=rng))
        router.observe(_routed(request, decision.worker_id), float(now_s))
        on_those_who_leave.append((request, decision.worker_id))
    for now_s, (request, worker_id) in enumerate(on_those_who_leave, 20):
        new = [_candidate(rng, name, 0) for name in "xy"]
        decision = router.select(request, new, RoutingContext(now_s=float(now_s), rng=rng))
        require(decision.worker_id in ("x", "y"), f"chose {decision.worker_id}, who has left")
        router.observe(
            Freed(request_id=request.request_id, worker_id=worker_id, is_failure=True), now_s + 0.5
        )


def takes_facts_in_any_order(bench: RouterBench) -> None:
    """Facts of different requests come mixed; one may fail before its first token, and be routed twice.

    Only the facts of one leg are in order. Tie what you remember to request and worker, not to the request
    alone.
    """
    rng = Random(10)
    router = bench.factory()
    waiting: list[list[RouterFact]] = []
    for number in range(60):
        request = _request(rng, number // 2)  # each is routed twice: a retry, or its two legs
        worker_id = WorkerId(rng.choice("abcde"))
        done = PrefillDone(request_id=request.request_id, worker_id=worker_id, num_cached_tokens=0)
        freed = Freed(request_id=request.request_id, worker_id=worker_id, num_output_tokens=rng.randrange(9))
        facts: list[RouterFact] = [_routed(request, worker_id), done, freed]
        waiting.append([fact for fact in facts if fact is not done or rng.random() < 0.7])
    now_s = 0.0
    while waiting:
        leg = rng.choice(waiting)
        router.observe(leg.pop(0), now_s)
        now_s += rng.random()
        if not leg:
            waiting.remove(leg)
    request, candidates = routing_rounds(11)[0]
    router.select(request, candidates, RoutingContext(now_s=now_s, rng=rng))


def forgets_what_has_ended(bench: RouterBench) -> None:
    """What a router remembers does not grow with the number of requests that have ended.

    A frontend routes millions. Drop a request's entry at ``Freed``, and bound what you keep of sessions and
    prefixes.
    """
    router, rng = bench.factory(), Random(12)
    candidates = [_candidate(rng, name, 0) for name in "abc"]

    def serve(first: int, num: int) -> None:
        for number in range(first, first + num):
            request = msgspec.structs.replace(_request(rng, number), session=None)
            now_s = number * 0.1
            decision = router.select(request, candidates, RoutingContext(now_s=now_s, rng=rng))
            worker_id = decision.worker_id
            router.observe(_routed(request, worker_id), now_s)
            router.observe(PrefillDone(request_id=request.request_id, worker_id=worker_id), now_s)
            router.observe(Freed(request_id=request.request_id, worker_id=worker_id), now_s)

    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        serve(0, _NUM_REMEMBERED)
        before = tracemalloc.get_traced_memory()[0]
        serve(_NUM_REMEMBERED, _NUM_REMEMBERED)
        grown_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
    require(
        grown_bytes < _NUM_REMEMBERED * 16,
        f"{_NUM_REMEMBERED} more requests, all ended, left {grown_bytes} bytes behind",
    )


def hears_of_strangers(bench: RouterBench) -> None:
    """``observe`` takes facts about requests and workers that the router has never seen.

    A frontend that has just started hears of requests that another one routed. Look the request up with a
    default.
    """
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


def _routed(request: RoutingRequest, worker_id: WorkerId) -> Routed:
    return Routed(
        request_id=request.request_id,
        worker_id=worker_id,
        role=request.role,
        num_tokens=request.num_tokens,
        num_cached_tokens=request.num_tokens // 2,
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
    keeps_no_candidate,
    takes_any_sequence,
    explains_with_candidates_only,
    explaining_changes_nothing,
    decisions_are_data,
    chooses_among_512,
    lets_workers_leave,
    takes_facts_in_any_order,
    forgets_what_has_ended,
    hears_of_strangers,
)


def router_kit(factory: Callable[[], Router]) -> Kit[RouterBench]:
    """The router checks, ready to run. ``factory()`` makes a new router."""
    return Kit(subject=Subject.of(factory()), checks=ROUTER_CHECKS, bench=RouterBench(factory))


def check_router(factory: Callable[[], Router]) -> Report:
    """Run every router check. ``factory()`` makes a new router."""
    return router_kit(factory).run_now()
