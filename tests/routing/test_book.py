"""What the book says of workers, against a naive account of the same facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dynamo_sdk.interfaces import Candidate, Freed, Overlap, PrefillDone, Routed
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.routing.book import RECENT_REQUESTS
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId

A, B = WorkerId("a"), WorkerId("b")


class Holders:
    """An index that knows only whole prompts: their first key, and who holds how much."""

    def __init__(self) -> None:
        self.held: dict[int, dict[int, Overlap]] = {}
        self.dropped: list[int] = []

    def match(self, keys: Sequence[int]) -> Mapping[int, Overlap]:
        return self.held.get(keys[0], {})

    def drop(self, seat: int) -> None:
        self.dropped.append(seat)


def routed(
    request: str, worker: WorkerId = A, *, tokens: int = 100, cached: int = 0, dp_rank: int = 0
) -> Routed:
    return Routed(
        request_id=request,
        worker_id=worker,
        role=Role.AGGREGATED,
        num_tokens=tokens,
        num_cached_tokens=cached,
        dp_rank=dp_rank,
    )


def done(request: str, worker: WorkerId = A) -> PrefillDone:
    return PrefillDone(request_id=request, worker_id=worker)


def freed(request: str, worker: WorkerId = A, *, output: int = 0) -> Freed:
    return Freed(request_id=request, worker_id=worker, num_output_tokens=output)


def only(book: CandidateBook, worker: WorkerId = A) -> Candidate:
    [candidate] = book.candidates([worker])
    return candidate


def serve(book: CandidateBook, worker: WorkerId, now_s: float, *, tokens: int, seconds: float) -> float:
    """One request alone on the worker, its first token after ``seconds``; returns when it is over."""
    book.observe(routed(f"{worker}-{now_s}", worker, tokens=tokens), now_s)
    book.observe(done(f"{worker}-{now_s}", worker), now_s + seconds)
    book.observe(freed(f"{worker}-{now_s}", worker), now_s + seconds)
    return now_s + seconds


class Facts(RuleBasedStateMachine):
    """Workers come and go; requests begin, get a first token and end, in any order, also twice."""

    @initialize()
    def start(self) -> None:
        self.index = Holders()
        self.book = CandidateBook(self.index)
        self.flights: dict[tuple[str, str], tuple[int, int, bool]] = {}  # rank, uncached tokens, has token
        self.sizes: dict[str, int] = {}
        self.now_s = 0.0

    @rule(name=st.sampled_from("abc"), dp_size=st.integers(1, 3))
    def join(self, name: str, dp_size: int) -> None:
        self.sizes.setdefault(name, dp_size)
        seats = self.book.join(WorkerId(name), dp_size=dp_size, block_size=4, pool=name > "b")
        assert len(seats) == self.sizes[name]

    @rule(name=st.sampled_from("abc"))
    def leave(self, name: str) -> None:
        seats = self.book.seats(WorkerId(name))
        self.book.leave(WorkerId(name))
        assert not self.index.dropped or set(seats) <= set(self.index.dropped)
        self.sizes.pop(name, None)
        self.flights = {key: flight for key, flight in self.flights.items() if key[0] != name}

    @rule(
        name=st.sampled_from("abc"),
        request=st.sampled_from("rstuv"),
        rank=st.integers(0, 2),
        tokens=st.integers(1, 40),
        cached=st.integers(0, 40),
    )
    def route(self, name: str, request: str, rank: int, tokens: int, cached: int) -> None:
        cached = min(cached, tokens - 1)
        if name in self.sizes:
            rank %= self.sizes[name]
            self.flights.setdefault((name, request), (rank, tokens - cached, False))
            if self.flights[name, request][0] != rank:
                return  # a request is on one rank
        fact = routed(request, WorkerId(name), tokens=tokens, cached=cached, dp_rank=rank)
        self.book.observe(fact, self.now_s)

    @rule(name=st.sampled_from("abc"), request=st.sampled_from("rstuv"))
    def first_token(self, name: str, request: str) -> None:
        self.book.observe(done(request, WorkerId(name)), self.now_s)
        if (flight := self.flights.get((name, request))) is not None:
            self.flights[name, request] = (*flight[:2], True)

    @rule(name=st.sampled_from("abc"), request=st.sampled_from("rstuv"), output=st.integers(0, 9))
    def end(self, name: str, request: str, output: int) -> None:
        self.book.observe(freed(request, WorkerId(name), output=output), self.now_s)
        self.flights.pop((name, request), None)

    @rule(name=st.sampled_from("abc"), running=st.integers(0, 9))
    def report(self, name: str, running: int) -> None:
        load = LoadSnapshot(at_s=0.0, num_running=running, num_waiting_tokens=running * 10)
        self.book.reported(WorkerId(name), load, self.now_s)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def adds_up(self) -> None:
        self.book.check_integrity()
        found = self.book.candidates(map(WorkerId, "abc"))
        assert len(found) == sum(self.sizes.values())
        for candidate in found:
            here = [
                flight
                for (name, _), flight in self.flights.items()
                if (name, flight[0]) == (candidate.worker_id, candidate.dp_rank)
            ]
            waiting = [tokens for _, tokens, has_token in here if not has_token]
            assert candidate.num_active_requests == len(here)
            assert candidate.num_prefill_requests == len(waiting)
            assert candidate.num_prefill_tokens == sum(waiting)
            assert candidate.prefill_s_per_request >= 0
            assert candidate.prefill_s_per_token >= 0
            assert candidate.num_other_requests >= 0


TestFacts = Facts.TestCase
TestFacts.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_seat_that_is_used_again_knows_nothing_of_its_last_owner() -> None:
    index = Holders()
    book = CandidateBook(index)
    [seat] = book.join(A)
    index.held[7] = {seat: Overlap(device_blocks=3)}
    book.look_up([7])
    book.observe(routed("r"), 0.0)
    assert only(book).overlap.device_blocks == 3
    book.leave(A)
    assert index.dropped == [seat]
    assert book.join(B) == (seat,)
    assert only(book, B).num_active_requests == 0
    assert only(book, B).overlap.num_blocks == 0


def test_overlaps_are_of_the_last_prompt_only() -> None:
    index = Holders()
    book = CandidateBook(index)
    [one], [two] = book.join(A), book.join(B)
    index.held = {1: {one: Overlap(device_blocks=1)}, 2: {two: Overlap(host_blocks=2), 99: Overlap()}}
    book.look_up([1])
    book.look_up([2])
    assert (only(book, A).overlap, only(book, B).overlap) == (Overlap(), Overlap(host_blocks=2))
    book.look_up([])
    assert only(book, B).overlap == Overlap()


def test_prefill_rates_are_found_from_times_alone() -> None:
    """20 ms for a prompt and 50 µs for a token, whatever the mix."""
    book, now_s = CandidateBook(), 0.0
    book.join(A)
    for tokens in [100, 4000, 700, 9000, 2000, 50] * 20:
        now_s = serve(book, A, now_s + 1.0, tokens=tokens, seconds=0.02 + 50e-6 * tokens)
    assert only(book).prefill_s_per_request == pytest.approx(0.02, rel=0.05)
    assert only(book).prefill_s_per_token == pytest.approx(50e-6, rel=0.05)


def test_requests_that_wait_in_line_are_not_charged_for_their_wait() -> None:
    book = CandidateBook()
    book.join(A)
    now_s = 0.0
    for _ in range(40):
        for number in range(4):
            book.observe(routed(f"{now_s}-{number}", tokens=1000), now_s)
        for number in range(4):  # one after the other, 0.1 s each
            book.observe(done(f"{now_s}-{number}"), now_s + 0.1 * (number + 1))
            book.observe(freed(f"{now_s}-{number}"), now_s + 0.1 * (number + 1))
        now_s += 10
    candidate = only(book)
    assert candidate.prefill_s_per_request + 1000 * candidate.prefill_s_per_token == pytest.approx(
        0.1, rel=0.1
    )


def test_first_tokens_of_one_step_are_one_observation() -> None:
    """Four prompts in a step of 0.1 s: 25 ms each, and not one of 0.1 s and three of nothing."""
    book, now_s = CandidateBook(), 0.0
    book.join(A)
    for _ in range(50):
        for number in range(4):
            book.observe(routed(f"{now_s}-{number}", tokens=500), now_s)
        for number in range(4):
            book.observe(done(f"{now_s}-{number}"), now_s + 0.1)
            book.observe(freed(f"{now_s}-{number}"), now_s + 0.1)
        now_s += 10
    candidate = only(book)
    four = 4 * candidate.prefill_s_per_request + 2000 * candidate.prefill_s_per_token
    assert four == pytest.approx(0.1, rel=0.1)


def test_a_slow_worker_is_known_and_forgiven() -> None:
    book, now_s = CandidateBook(), 0.0
    book.join(A)
    book.join(B)
    for _ in range(30):
        serve(book, A, now_s, tokens=1000, seconds=1.0)
        now_s = serve(book, B, now_s + 0.1, tokens=1000, seconds=0.1)
    assert only(book, A).prefill_s_per_token > 4 * only(book, B).prefill_s_per_token
    for _ in range(200):  # it gets nothing any more, and what was known grows old
        now_s = serve(book, B, now_s + 5.0, tokens=1000, seconds=0.1)
    assert only(book, A).prefill_s_per_token < 2 * only(book, B).prefill_s_per_token


def test_the_wait_of_the_first_in_line_counts_from_the_last_first_token() -> None:
    book = CandidateBook()
    book.join(A)
    book.observe(routed("r", tokens=10), 1.0)
    book.observe(routed("s", tokens=20), 2.0)
    book.observe(routed("t", tokens=30), 3.0)
    assert (only(book).prefill_since_s, only(book).first_prefill_tokens) == (1.0, 10)
    book.observe(freed("t"), 4.0)  # was cancelled: changes nothing for the first
    assert (only(book).prefill_since_s, only(book).first_prefill_tokens) == (1.0, 10)
    book.observe(done("r"), 5.0)
    assert (only(book).prefill_since_s, only(book).first_prefill_tokens) == (5.0, 20)
    book.observe(done("s"), 6.0)
    assert (only(book).prefill_since_s, only(book).first_prefill_tokens) == (None, 0)


def test_requests_of_other_frontends_are_what_a_report_has_beyond_ours() -> None:
    book = CandidateBook()
    book.join(A)
    book.observe(routed("r", tokens=100), 0.0)
    book.reported(A, LoadSnapshot(at_s=0.0, num_running=2, num_waiting=3, num_waiting_tokens=900), 0.1)
    assert (only(book).num_other_requests, only(book).num_other_prefill_tokens) == (4, 800)
    book.silent(A)
    assert only(book).load is None
    assert (only(book).num_other_requests, only(book).num_other_prefill_tokens) == (0, 0)


def test_our_own_requests_are_not_others_when_a_report_comes_late() -> None:
    """Each report misses a request that has just begun, or still has one that has just ended."""
    book = CandidateBook()
    book.join(A)
    for number in range(60):
        now_s = number * 0.1
        if number % 2 == 0:
            book.observe(routed(f"r{number}"), now_s)
        else:
            book.observe(freed(f"r{number - 1}"), now_s)
        book.reported(A, LoadSnapshot(at_s=0.0, num_running=number % 2), now_s)
        assert only(book).num_other_requests <= 1
    assert only(book).num_other_requests == 0


def test_recent_work_fades_with_what_comes_after_it_and_not_with_time() -> None:
    book = CandidateBook()
    book.join(A)
    book.join(B)
    book.observe(routed("r", A, tokens=10_000), 0.0)
    given_s = only(book, A).recent_prefill_s
    assert given_s > 0
    book.observe(freed("r", A), 1e6)
    assert only(book, A).recent_prefill_s == given_s
    for number in range(2 * RECENT_REQUESTS):  # as many as are half of those that they have together
        book.observe(routed(f"s{number}", B, tokens=10), 1e6)
    assert only(book, A).recent_prefill_s == pytest.approx(given_s / math.e, rel=0.02)


def test_a_step_of_the_engine_starts_the_clock_of_those_that_came_during_it() -> None:
    """A prompt that comes while others decode waits for the end of their step; that is not its own time.
    First and last tokens of others show where a step ended."""
    book = CandidateBook()
    book.join(A)
    for name in ("r", "q", "p"):
        book.observe(routed(name), 0.0)
        book.observe(done(name), 1.0)
    book.observe(routed("s"), 1.2)
    assert only(book).prefill_since_s == 1.2
    book.observe(freed("p"), 1.3)  # was cancelled: that says nothing of a step
    assert (only(book).prefill_since_s, only(book).step_at_s) == (1.2, 1.0)
    book.observe(freed("q", output=3), 1.5)
    assert (only(book).prefill_since_s, only(book).step_at_s) == (1.5, 1.5)
    book.observe(freed("r", output=4), 1.8)  # a second step for a long prompt
    assert (only(book).prefill_since_s, only(book).step_at_s) == (1.5, 1.8)
