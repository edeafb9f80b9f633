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
from typing import Protocol

from dynamo_sdk.interfaces import Candidate, Freed, Overlap, PrefillDone, Routed, RouterFact
from dynamo_sdk.interfaces.router import NO_OVERLAP
from dynamo_sdk.kv import DecisionIndex, PrefixKeys, deepest
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

from .kv_sources import KVSources
from .seats import Finished, Flight, Predictions, Seat, SeatPool, note_step, set_rates, take_report
from .tier_costs import num_useful_blocks

RECENT_REQUESTS = 64
"""Of each worker of the pool, on average: as many requests later, work that it was given is forgotten, all
but a third. Not after some time: the slowest traffic must be remembered too."""

_SAME_STEP_S = 1e-3
_REFRESH_INTERVAL = 16
_EARLY = 64


RECENT_DECISION_TTL_S = 5.0
"""Until then a worker's KV events say what became of a decision; what is sent there now counts as held."""

DECISION_TTL_S = 120.0
"""Where no KV events come, what was sent to a worker counts as held for so long."""


class OverlapIndex(Protocol):
    """Who holds how much of a prompt. ``keys``: one per full block. Who holds nothing may be left out."""

    def match(self, keys: Sequence[int]) -> Mapping[int, Overlap]: ...

    def drop(self, seat: int) -> None: ...


class CandidateBook:
    """Not thread-safe. Bounded by the workers that are there and the requests that are under way."""

    def __init__(self, index: OverlapIndex | None = None, *, remembers_decisions: bool = False) -> None:
        """``remembers_decisions``: count what was sent to a worker as held there, for seconds where KV events
        come and for minutes where none do."""
        self._index = index
        self._recent = DecisionIndex(RECENT_DECISION_TTL_S) if remembers_decisions else None
        self._approximate = DecisionIndex(DECISION_TTL_S) if remembers_decisions else None
        self._pools: dict[Hashable, SeatPool] = {}
        self._workers: dict[WorkerId, tuple[Seat, ...]] = {}
        self._seats: dict[int, Seat] = {}
        self._free_numbers: list[int] = []
        self._matched: list[Candidate] = []
        self._sources = KVSources()

    # -- who is there

    def join(
        self,
        worker_id: WorkerId,
        *,
        pool: Hashable = None,
        dp_size: int = 1,
        block_size: int | None = None,
        num_blocks: int | None = None,
        sharing: Hashable = None,
    ) -> tuple[int, ...]:
        """A worker has come; returns its seats, by rank. Workers of a ``pool`` do the same work, so what is
        measured of one is a first guess of the next. ``sharing``: workers of equal ones read each other's
        tiers. One that is there already keeps its seats."""
        if worker_id not in self._workers:
            shared = self._pools.setdefault(pool, SeatPool())
            candidates = [
                Candidate(worker_id=worker_id, dp_rank=rank, num_blocks=num_blocks) for rank in range(dp_size)
            ]
            self._workers[worker_id] = tuple(
                self._sit_down(candidate, shared, block_size or 1) for candidate in candidates
            )
            for seat in self._workers[worker_id]:
                seat.sharing = sharing
        return self.seats(worker_id)

    def leave(self, worker_id: WorkerId) -> None:
        """The worker has gone, and with it everything that was known of it."""
        for seat in self._workers.pop(worker_id, ()):
            del self._seats[seat.number]
            seat.pool.seats.discard(seat.number)
            self._free_numbers.append(seat.number)
            for index in (self._index, self._recent, self._approximate):
                if index is not None:
                    index.drop(seat.number)
        self._pools = {key: pool for key, pool in self._pools.items() if pool.seats}

    def seats(self, worker_id: WorkerId) -> tuple[int, ...]:
        """By rank; empty for a stranger."""
        return tuple(seat.number for seat in self._workers.get(worker_id, ()))

    @property
    def pools(self) -> Collection[Hashable]:
        """Those that have workers."""
        return self._pools.keys()

    @property
    def workers(self) -> Collection[WorkerId]:
        return self._workers.keys()

    # -- what routers get

    def candidates(self, workers: Iterable[WorkerId]) -> list[Candidate]:
        """Of these workers, all their ranks; strangers are left out. The objects stay the same while the
        worker is there, so the list can be kept as long as the fleet does not change."""
        return [seat.candidate for worker_id in workers for seat in self._workers.get(worker_id, ())]

    def look_up(self, keys: Sequence[int], now_s: float = 0.0) -> None:
        """Set every candidate's ``overlap`` to what it holds of the prompt with these block keys."""
        for candidate in self._matched:
            candidate.overlap = NO_OVERLAP
        self._matched.clear()
        self._sources.look_up({}, self._seats)
        if not len(keys):
            return
        found = self._index.match(keys) if self._index is not None else {}
        self._sources.look_up(found, self._seats)
        for decisions in (self._recent, self._approximate):
            if decisions is not None:
                found = deepest(dict(found), decisions.match(keys, now_s))
        for number, overlap in found.items():
            if (seat := self._seats.get(number)) is not None:
                seat.candidate.overlap = overlap
                self._matched.append(seat.candidate)
        self._matched.extend(self._sources.credit(self._seats))

    def kv_source(self, candidate: Candidate) -> tuple[WorkerId, int] | None:
        """Whose tiers ``candidate`` should read for the prompt that was looked up last, and how many of its
        leading blocks are there; None where nobody has clearly more than it has itself."""
        return self._sources.source(self._workers[candidate.worker_id][candidate.dp_rank])

    def cached_tokens(self, candidate: Candidate, num_tokens: int, block_size: int | None) -> int:
        """What a request of ``num_tokens`` need not compute there; the last token always is computed."""
        num_blocks = num_useful_blocks(candidate, block_size or 0)
        return max(0, min(num_blocks * (block_size or 0), num_tokens - 1))

    # -- what is heard

    def sent(self, candidate: Candidate, keys: PrefixKeys, now_s: float) -> None:
        """The prompt with these block keys goes to ``candidate``."""
        seat = self._workers[candidate.worker_id][candidate.dp_rank]
        if self._recent is not None and self._approximate is not None:
            (self._recent if seat.has_events else self._approximate).record(seat.number, keys, now_s)

    def hears_events(self, worker_id: WorkerId, has_events: bool) -> None:
        """Whether the worker's KV events arrive, complete so far; until it is said, they do not."""
        for seat in self._workers.get(worker_id, ()):
            seat.has_events = has_events

    def predictions(self, pool: Hashable) -> Predictions:
        """How well cached tokens were predicted, since the pool is there."""
        found = self._pools.get(pool)
        return Predictions(0, 0, 0) if found is None else found.predictions

    def reported(
        self, worker_id: WorkerId, load: LoadSnapshot, now_s: float, dp_rank: int | None = None
    ) -> None:
        """The worker (None: all its ranks alike) says how busy it is."""
        for seat in self._workers.get(worker_id, ()):
            if dp_rank is None or dp_rank == seat.candidate.dp_rank:
                take_report(seat, load, now_s)

    def silent(self, worker_id: WorkerId) -> None:
        """No reports come any more: old ones are worse than none."""
        for seat in self._workers.get(worker_id, ()):
            candidate = seat.candidate
            candidate.load = candidate.load_at_s = seat.others = None
            candidate.num_other_requests = candidate.num_other_prefill_tokens = 0

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
                    note_step(seat, now_s)
                else:
                    self._freed(seat, fact, flight, now_s)
                    if fact.num_output_tokens and not fact.is_failure:
                        note_step(seat, now_s)

    # -- inside

    def _sit_down(self, candidate: Candidate, pool: SeatPool, block_size: int) -> Seat:
        number = self._free_numbers.pop() if self._free_numbers else len(self._seats)
        seat = self._seats[number] = Seat(number, block_size, pool, candidate)
        pool.seats.add(number)
        set_rates(seat, 0.0)
        return seat

    def _routed(self, seat: Seat, fact: Routed, now_s: float) -> None:
        if fact.request_id in seat.flights:
            return
        num_prefill_tokens = max(1, fact.num_tokens - fact.num_cached_tokens)
        num_new_tokens = num_prefill_tokens + seat.pool.output_tokens.value
        num_blocks = math.ceil(num_new_tokens / seat.block_size)
        flight = Flight(
            fact.num_tokens, num_prefill_tokens, num_blocks, now_s, fact.role, fact.num_cached_tokens
        )
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

    def _forget(self, pool: SeatPool) -> None:
        """A little of the recent work, each time that every seat may have had a request."""
        pool.num_routed += 1
        if pool.num_routed >= len(pool.seats):
            pool.num_routed = 0
            for number in pool.seats:
                self._seats[number].candidate.recent_prefill_s *= 1 - 1 / RECENT_REQUESTS

    def _prefill_done(self, seat: Seat, request_id: str, flight: Flight, now_s: float) -> None:
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
        seat.finished = Finished(1, flight.prefill_tokens, num_active_tokens, seconds, now_s)
        if finished is not None:
            self._learn_prefill(seat, finished, now_s)

    def _learn_prefill(self, seat: Seat, finished: Finished, now_s: float) -> None:
        pool = seat.pool
        work = (finished.num_requests, finished.num_tokens, finished.num_active_tokens)
        seat.slowness.observe(finished.seconds, pool.prefill.seconds(*work), now_s)
        pool.prefill.observe(*work, finished.seconds)
        pool.prefill_s.add(finished.seconds)
        num_observations = pool.prefill.num_observations
        if num_observations < _EARLY or num_observations % _REFRESH_INTERVAL == 0:
            for number in pool.seats:
                set_rates(self._seats[number], now_s)
        else:
            set_rates(seat, now_s)

    def _freed(self, seat: Seat, fact: Freed, flight: Flight, now_s: float) -> None:
        candidate = seat.candidate
        del seat.flights[fact.request_id]
        if fact.num_cached_tokens is not None and flight.role is not Role.DECODE:
            predictions = seat.pool.predictions
            predictions.num_requests += 1
            predictions.num_predicted_tokens += flight.num_cached_tokens
            predictions.num_actual_tokens += fact.num_cached_tokens
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
        self, seat: Seat, request_id: str, flight: Flight, now_s: float, *, is_progress: bool
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
