"""``CandidateBook``: all that a router may know of each worker, kept current.

::

    who is there         join, leave ─────────┐
    what they hold       an overlap index ────┤
    what they report     reported ────────────┼──> candidates
    our own requests     observe(fact) ───────┤
    how fast they are    measured from these ─┘

The frontend and the simulator fill the same book. A *seat* is one worker, or one data-parallel rank of it,
under a small number that is used again when the worker has left; indexes know workers by it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dynamo_sdk.interfaces import Candidate, Freed, Overlap, PrefillDone, Routed, RouterFact
from dynamo_sdk.interfaces.router import NO_OVERLAP
from dynamo_sdk.types import LoadSnapshot, WorkerId

from .rates import PRIOR_DECODE_S_PER_TOKEN, Average, PrefillModel, Slowness

RECENT_REQUESTS = 64
"""Of each worker of the pool, on average: as many requests later, work that it was given is forgotten, all
but a third. Not after some time: the slowest traffic must be remembered too."""

_SAME_STEP_S = 1e-3
_OTHERS_SMOOTHING_S = 1.0
_REFRESH_INTERVAL = 16
_EARLY = 64


class OverlapIndex(Protocol):
    """Who holds how much of a prompt. ``keys``: one per full block. Who holds nothing may be left out."""

    def match(self, keys: Sequence[int]) -> Mapping[int, Overlap]: ...

    def drop(self, seat: int) -> None: ...


@dataclass(slots=True)
class _Pool:
    """What the seats of one pool have in common."""

    prefill: PrefillModel = field(default_factory=PrefillModel)
    prefill_s: Average = field(default_factory=lambda: Average(0.1, 64))  # of one observation
    decode_s_per_token: Average = field(default_factory=lambda: Average(PRIOR_DECODE_S_PER_TOKEN, 64))
    decode_s_per_request: Average = field(default_factory=lambda: Average(128 * PRIOR_DECODE_S_PER_TOKEN, 64))
    output_tokens: Average = field(default_factory=lambda: Average(128.0, 256))
    num_routed: int = 0
    seats: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Flight:
    """One of our requests on a seat. ``prefill_tokens``: not cached; counted until the first token."""

    num_tokens: int
    prefill_tokens: int
    num_blocks: int
    routed_s: float
    first_token_s: float | None = None


@dataclass(slots=True)
class _Finished:
    """First tokens of one engine step: they came together and are one observation."""

    num_requests: int
    num_tokens: int
    num_active_tokens: int
    seconds: float
    at_s: float


@dataclass(slots=True)
class _Seat:
    number: int
    block_size: int
    pool: _Pool
    candidate: Candidate
    flights: dict[str, _Flight] = field(default_factory=dict)
    waiting: dict[str, _Flight] = field(default_factory=dict)  # without a token, oldest first
    finished: _Finished | None = None
    is_prefilling: bool = False
    slowness: Slowness = field(default_factory=Slowness)
    decode_s_per_token: Average = field(default_factory=lambda: Average(0.0, 32))
    others: float | None = None  # requests that are not ours, signed and smoothed


class CandidateBook:
    """Not thread-safe. Bounded by the workers that are there and the requests that are under way."""

    def __init__(self, index: OverlapIndex | None = None) -> None:
        self._index = index
        self._pools: dict[Hashable, _Pool] = {}
        self._workers: dict[WorkerId, tuple[_Seat, ...]] = {}
        self._seats: dict[int, _Seat] = {}
        self._free_numbers: list[int] = []
        self._matched: list[Candidate] = []

    # -- who is there

    def join(
        self,
        worker_id: WorkerId,
        *,
        pool: Hashable = None,
        dp_size: int = 1,
        block_size: int | None = None,
        num_blocks: int | None = None,
    ) -> tuple[int, ...]:
        """A worker has come; returns its seats, by rank. Workers of a ``pool`` do the same work, so what is
        measured of one is a first guess of the next. One that is there already keeps its seats."""
        if worker_id not in self._workers:
            shared = self._pools.setdefault(pool, _Pool())
            candidates = [
                Candidate(worker_id=worker_id, dp_rank=rank, num_blocks=num_blocks) for rank in range(dp_size)
            ]
            self._workers[worker_id] = tuple(
                self._sit_down(candidate, shared, block_size or 1) for candidate in candidates
            )
        return self.seats(worker_id)

    def leave(self, worker_id: WorkerId) -> None:
        """The worker has gone, and with it everything that was known of it."""
        for seat in self._workers.pop(worker_id, ()):
            del self._seats[seat.number]
            seat.pool.seats.discard(seat.number)
            self._free_numbers.append(seat.number)
            if self._index is not None:
                self._index.drop(seat.number)
        self._pools = {key: pool for key, pool in self._pools.items() if pool.seats}

    def seats(self, worker_id: WorkerId) -> tuple[int, ...]:
        """By rank; empty for a stranger."""
        return tuple(seat.number for seat in self._workers.get(worker_id, ()))

    @property
    def workers(self) -> Collection[WorkerId]:
        return self._workers.keys()

    # -- what routers get

    def candidates(self, workers: Iterable[WorkerId]) -> list[Candidate]:
        """Of these workers, all their ranks; strangers are left out. The objects stay the same while the
        worker is there, so the list can be kept as long as the fleet does not change."""
        return [seat.candidate for worker_id in workers for seat in self._workers.get(worker_id, ())]

    def look_up(self, keys: Sequence[int]) -> None:
        """Set every candidate's ``overlap`` to what it holds of the prompt with these block keys."""
        for candidate in self._matched:
            candidate.overlap = NO_OVERLAP
        self._matched.clear()
        if self._index is None or not keys:
            return
        for number, overlap in self._index.match(keys).items():
            if (seat := self._seats.get(number)) is not None:
                seat.candidate.overlap = overlap
                self._matched.append(seat.candidate)

    def cached_tokens(self, candidate: Candidate, num_tokens: int, block_size: int | None) -> int:
        """What a request of ``num_tokens`` need not compute there; the last token always is computed."""
        return max(0, min(candidate.overlap.num_blocks * (block_size or 0), num_tokens - 1))

    # -- what is heard

    def reported(
        self, worker_id: WorkerId, load: LoadSnapshot, now_s: float, dp_rank: int | None = None
    ) -> None:
        """The worker (None: all its ranks alike) says how busy it is."""
        for seat in self._workers.get(worker_id, ()):
            if dp_rank is None or dp_rank == seat.candidate.dp_rank:
                _take_report(seat, load, now_s)

    def silent(self, worker_id: WorkerId) -> None:
        """No reports come any more: old ones are worse than none."""
        for seat in self._workers.get(worker_id, ()):
            candidate = seat.candidate
            candidate.load = candidate.load_at_s = seat.others = None
            candidate.num_other_requests = candidate.num_other_prefill_tokens = 0

    def stepped(self, worker_id: WorkerId, now_s: float, dp_rank: int = 0) -> None:
        """Tokens have come from the worker: a step of its engine has ended, and the next one has begun."""
        seats = self._workers.get(worker_id)
        if seats is None:
            return
        seat = seats[dp_rank]
        candidate = seat.candidate
        candidate.step_at_s = now_s
        if seat.waiting and not seat.is_prefilling:
            seat.is_prefilling = True
            candidate.prefill_since_s = now_s

    def observe(self, fact: RouterFact, now_s: float) -> None:
        """One of our requests went somewhere, got its first token there, or ended. Facts about workers that
        are gone, or about requests that never were there, change nothing."""
        seats = self._workers.get(fact.worker_id)
        if seats is None:
            return
        if isinstance(fact, Routed):
            self._routed(seats[fact.dp_rank] if fact.dp_rank < len(seats) else seats[0], fact, now_s)
            return
        for seat in seats:
            flight = seat.flights.get(fact.request_id)
            if flight is not None:
                if isinstance(fact, PrefillDone):
                    self._prefill_done(seat, fact.request_id, flight, now_s)
                else:
                    self._freed(seat, fact, flight, now_s)

    # -- inside

    def _sit_down(self, candidate: Candidate, pool: _Pool, block_size: int) -> _Seat:
        number = self._free_numbers.pop() if self._free_numbers else len(self._seats)
        seat = self._seats[number] = _Seat(number, block_size, pool, candidate)
        pool.seats.add(number)
        _set_rates(seat, 0.0)
        return seat

    def _routed(self, seat: _Seat, fact: Routed, now_s: float) -> None:
        if fact.request_id in seat.flights:
            return
        num_prefill_tokens = max(1, fact.num_tokens - fact.num_cached_tokens)
        num_new_tokens = num_prefill_tokens + seat.pool.output_tokens.value
        num_blocks = math.ceil(num_new_tokens / seat.block_size)
        flight = _Flight(fact.num_tokens, num_prefill_tokens, num_blocks, now_s)
        candidate = seat.candidate
        seconds = seat.pool.prefill.seconds(1, num_prefill_tokens, 0)
        candidate.recent_prefill_s += seconds
        self._forget(seat.pool)
        seat.flights[fact.request_id] = seat.waiting[fact.request_id] = flight
        candidate.num_active_requests += 1
        candidate.num_active_blocks += flight.num_blocks
        candidate.num_active_tokens += flight.num_tokens
        candidate.num_prefill_requests += 1
        candidate.num_prefill_tokens += num_prefill_tokens
        if len(seat.waiting) == 1:
            candidate.first_prefill_tokens = num_prefill_tokens
            candidate.prefill_since_s = now_s
            seat.is_prefilling = candidate.num_active_requests == 1

    def _forget(self, pool: _Pool) -> None:
        """A little of the recent work, each time that every seat may have had a request."""
        pool.num_routed += 1
        if pool.num_routed >= len(pool.seats):
            pool.num_routed = 0
            for number in pool.seats:
                self._seats[number].candidate.recent_prefill_s *= 1 - 1 / RECENT_REQUESTS

    def _prefill_done(self, seat: _Seat, request_id: str, flight: _Flight, now_s: float) -> None:
        if flight.first_token_s is not None:
            return
        flight.first_token_s = now_s
        since_s = seat.candidate.prefill_since_s
        self._stop_waiting(seat, request_id, flight, now_s, is_progress=True)
        assert since_s is not None, "a request waited and nothing was first in line"
        finished = seat.finished
        if finished is not None and now_s - finished.at_s < _SAME_STEP_S:
            finished.num_requests += 1
            finished.num_tokens += flight.prefill_tokens
            return
        if (seconds := now_s - since_s) < _SAME_STEP_S:
            seconds = now_s - flight.routed_s  # the line moved in this very step
        num_active_tokens = seat.candidate.num_active_tokens - flight.num_tokens
        seat.finished = _Finished(1, flight.prefill_tokens, num_active_tokens, seconds, now_s)
        if finished is not None:
            self._learn_prefill(seat, finished, now_s)

    def _learn_prefill(self, seat: _Seat, finished: _Finished, now_s: float) -> None:
        pool = seat.pool
        work = (finished.num_requests, finished.num_tokens, finished.num_active_tokens)
        seat.slowness.observe(finished.seconds, pool.prefill.seconds(*work), now_s)
        pool.prefill.observe(*work, finished.seconds)
        pool.prefill_s.add(finished.seconds)
        num_observations = pool.prefill.num_observations
        if num_observations < _EARLY or num_observations % _REFRESH_INTERVAL == 0:
            for number in pool.seats:
                _set_rates(self._seats[number], now_s)
        else:
            _set_rates(seat, now_s)

    def _freed(self, seat: _Seat, fact: Freed, flight: _Flight, now_s: float) -> None:
        candidate = seat.candidate
        del seat.flights[fact.request_id]
        candidate.num_active_requests -= 1
        candidate.num_active_blocks -= flight.num_blocks
        candidate.num_active_tokens -= flight.num_tokens
        if flight.first_token_s is None:
            self._stop_waiting(seat, fact.request_id, flight, now_s, is_progress=False)
        elif fact.num_output_tokens > 1 and not fact.is_failure:
            seconds = (now_s - flight.first_token_s) / (fact.num_output_tokens - 1)
            seat.pool.decode_s_per_token.add(seconds)
            seat.decode_s_per_token.add(seconds)
            seat.pool.output_tokens.add(fact.num_output_tokens)
            seat.pool.decode_s_per_request.add(now_s - flight.first_token_s)
            candidate.decode_s_per_request = seat.pool.decode_s_per_request.value
            candidate.decode_s_per_token = seat.decode_s_per_token.value

    def _stop_waiting(
        self, seat: _Seat, request_id: str, flight: _Flight, now_s: float, *, is_progress: bool
    ) -> None:
        """The request has its first token, or will not get one. Engines work in the order of arrival: the
        time until the next first token counts from the last one, or from the end of the first in line."""
        candidate = seat.candidate
        is_first = next(iter(seat.waiting)) == request_id
        del seat.waiting[request_id]
        candidate.num_prefill_requests -= 1
        candidate.num_prefill_tokens -= flight.prefill_tokens
        first = next(iter(seat.waiting.values()), None)
        candidate.first_prefill_tokens = 0 if first is None else first.prefill_tokens
        if first is None:
            candidate.prefill_since_s = None
        elif is_progress or is_first:
            candidate.prefill_since_s = now_s
            seat.is_prefilling = is_progress

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(requests)."""
        assert sorted(self._seats) == sorted(s.number for seats in self._workers.values() for s in seats)
        assert not set(self._free_numbers) & set(self._seats), "a seat is free and taken"
        assert len(self._free_numbers) == len(set(self._free_numbers))
        numbers = {number for pool in self._pools.values() for number in pool.seats}
        assert numbers == set(self._seats), "a pool has other seats than the book"
        for seat in self._seats.values():
            seat_flights, waiting, candidate = seat.flights, seat.waiting, seat.candidate
            assert waiting == {k: f for k, f in seat_flights.items() if f.first_token_s is None}
            assert candidate.num_active_requests == len(seat_flights)
            assert candidate.num_prefill_requests == len(waiting)
            assert candidate.num_prefill_tokens == sum(f.prefill_tokens for f in waiting.values())
            assert candidate.num_active_tokens == sum(f.num_tokens for f in seat_flights.values())
            assert candidate.num_active_blocks == sum(f.num_blocks for f in seat_flights.values())
            first = next(iter(waiting.values()), None)
            assert candidate.first_prefill_tokens == (first.prefill_tokens if first else 0)
            assert (candidate.prefill_since_s is None) is (first is None)


def _take_report(seat: _Seat, load: LoadSnapshot, now_s: float) -> None:
    """A report counts our own requests too, some of them a little late; hence the difference, smoothed."""
    candidate = seat.candidate
    difference = load.num_running + load.num_waiting - candidate.num_active_requests
    last_s = candidate.load_at_s
    if seat.others is None or last_s is None:
        seat.others = float(difference)
    else:
        weight = 1 - math.exp(-max(0.0, now_s - last_s) / _OTHERS_SMOOTHING_S)
        seat.others += weight * (difference - seat.others)
    candidate.load, candidate.load_at_s = load, now_s
    candidate.num_other_requests = max(0, round(seat.others))
    foreign_tokens = load.num_waiting_tokens - candidate.num_prefill_tokens
    candidate.num_other_prefill_tokens = max(0, foreign_tokens) if candidate.num_other_requests else 0


def _set_rates(seat: _Seat, now_s: float) -> None:
    pool, candidate = seat.pool, seat.candidate
    factor = seat.slowness.factor(Slowness.PRIOR_OBSERVATIONS * pool.prefill_s.value, now_s)
    candidate.prefill_s_per_request = factor * pool.prefill.s_per_request
    candidate.prefill_s_per_token = factor * pool.prefill.s_per_token
    candidate.prefill_s_per_active_token = factor * pool.prefill.s_per_active_token
    candidate.decode_s_per_request = pool.decode_s_per_request.value
    if not candidate.decode_s_per_token:
        candidate.decode_s_per_token = pool.decode_s_per_token.value
