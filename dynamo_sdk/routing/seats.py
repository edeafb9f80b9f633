"""What the book keeps of one seat, and how news change it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from dynamo_sdk.interfaces import Candidate
from dynamo_sdk.types import LoadSnapshot, Role

from .rates import PRIOR_DECODE_S_PER_TOKEN, Average, PrefillModel, Slowness

_OTHERS_SMOOTHING_S = 1.0


@dataclass(slots=True)
class Predictions:
    """Cached prompt tokens of requests that are over: as the index had it, and as the engine said."""

    num_requests: int
    num_predicted_tokens: int
    num_actual_tokens: int

    def copy(self) -> Predictions:
        return replace(self)

    def since(self, earlier: Predictions | None) -> Predictions:
        """What came after ``earlier``; everything when the pool has begun anew."""
        if earlier is None or earlier.num_requests > self.num_requests:
            return self
        return Predictions(
            self.num_requests - earlier.num_requests,
            self.num_predicted_tokens - earlier.num_predicted_tokens,
            self.num_actual_tokens - earlier.num_actual_tokens,
        )

    @property
    def error(self) -> float:
        """The difference, as a share of the larger number."""
        larger = max(self.num_predicted_tokens, self.num_actual_tokens)
        return abs(self.num_predicted_tokens - self.num_actual_tokens) / larger if larger else 0.0


@dataclass(slots=True)
class SeatPool:
    """What the seats of one pool have in common."""

    prefill: PrefillModel = field(default_factory=PrefillModel)
    prefill_s: Average = field(default_factory=lambda: Average(0.1, 64))  # of one observation
    decode_s_per_token: Average = field(default_factory=lambda: Average(PRIOR_DECODE_S_PER_TOKEN, 64))
    decode_s_per_request: Average = field(default_factory=lambda: Average(128 * PRIOR_DECODE_S_PER_TOKEN, 64))
    output_tokens: Average = field(default_factory=lambda: Average(128.0, 256))
    num_routed: int = 0
    predictions: Predictions = field(default_factory=lambda: Predictions(0, 0, 0))
    seats: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Flight:
    """One of our requests on a seat. ``prefill_tokens``: not cached; counted until the first token."""

    num_tokens: int
    prefill_tokens: int
    num_blocks: int
    routed_s: float
    role: Role
    num_cached_tokens: int
    first_token_s: float | None = None


@dataclass(slots=True)
class Finished:
    """First tokens of one engine step: they came together and are one observation."""

    num_requests: int
    num_tokens: int
    num_active_tokens: int
    seconds: float
    at_s: float


@dataclass(slots=True)
class Seat:
    number: int
    block_size: int
    pool: SeatPool
    candidate: Candidate
    flights: dict[str, Flight] = field(default_factory=dict)
    waiting: dict[str, Flight] = field(default_factory=dict)  # without a token, oldest first
    finished: Finished | None = None
    is_prefilling: bool = False
    slowness: Slowness = field(default_factory=Slowness)
    decode_s_per_token: Average = field(default_factory=lambda: Average(0.0, 32))
    has_events: bool = False
    sharing: Hashable = None  # workers of equal ones read each other's tiers; None: of nobody
    others: float | None = None  # requests that are not ours, signed and smoothed


def take_report(seat: Seat, load: LoadSnapshot, now_s: float) -> None:
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


def set_rates(seat: Seat, now_s: float) -> None:
    pool, candidate = seat.pool, seat.candidate
    factor = seat.slowness.factor(Slowness.PRIOR_OBSERVATIONS * pool.prefill_s.value, now_s)
    candidate.prefill_s_per_request = factor * pool.prefill.s_per_request
    candidate.prefill_s_per_token = factor * pool.prefill.s_per_token
    candidate.prefill_s_per_active_token = factor * pool.prefill.s_per_active_token
    candidate.decode_s_per_request = pool.decode_s_per_request.value
    if not candidate.decode_s_per_token:
        candidate.decode_s_per_token = pool.decode_s_per_token.value


def note_step(seat: Seat, now_s: float) -> None:
    """A step has ended; those that came during it are in the next one."""
    candidate = seat.candidate
    candidate.step_at_s = now_s
    if seat.waiting and not seat.is_prefilling:
        seat.is_prefilling = True
        candidate.prefill_since_s = now_s
