"""``Router``: which worker gets a request. Read this file to write one; ten lines are enough.

A router is synchronous and pure: time and randomness come in ``RoutingContext``, what it may choose
from in ``candidates``. The same object decides live, in tests and in simulation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random

import msgspec

from dynamo_sdk.types.loads import LoadSnapshot
from dynamo_sdk.types.requests import Role
from dynamo_sdk.types.workers import WorkerId


class Overlap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Leading blocks of the prompt that a worker holds, each counted in the fastest tier that has it."""

    device_blocks: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    remote_blocks: int = 0


class Candidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker (or one data-parallel rank of it) that may take the request.

    ``num_active_requests`` is counted by this router's own flow, at once; ``load`` is what the worker
    last reported, ``load_age_s`` ago (None = nothing yet).
    """

    worker_id: WorkerId
    dp_rank: int = 0
    overlap: Overlap = Overlap()
    num_active_requests: int = 0
    load: LoadSnapshot | None = None
    load_age_s: float | None = None


class RoutingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a router may know of a request. ``role`` is the pool that is being chosen from."""

    request_id: str
    model: str
    role: Role
    num_tokens: int
    block_size: int | None = None
    priority: int = 0
    session: str | None = None


class RoutingContext(msgspec.Struct, frozen=True, kw_only=True):
    """``now_s``: monotonic seconds. ``rng``: the only source of chance."""

    now_s: float
    rng: Random


class CostTerm(msgspec.Struct, frozen=True):
    """One named part of a candidate's cost; lower is better."""

    name: str
    value: float


class CandidateCost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    worker_id: WorkerId
    dp_rank: int = 0
    terms: tuple[CostTerm, ...] = ()


class RoutingDecision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The choice, and why: ``costs`` for whoever asks for an explanation, ``reason`` in a few words."""

    worker_id: WorkerId
    dp_rank: int = 0
    reason: str = ""
    costs: tuple[CandidateCost, ...] = ()


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """A request was sent to a worker."""

    request_id: str
    worker_id: WorkerId
    role: Role
    num_tokens: int


class PrefillDone(msgspec.Struct, frozen=True, kw_only=True):
    """The worker has produced its first token for the request."""

    request_id: str
    worker_id: WorkerId
    num_cached_tokens: int


class Freed(msgspec.Struct, frozen=True, kw_only=True):
    """The request no longer uses the worker. ``is_failure``: because the worker failed."""

    request_id: str
    worker_id: WorkerId
    is_failure: bool = False


RouterFact = Routed | PrefillDone | Freed


class Router(ABC):
    """Chooses one of the candidates."""

    @abstractmethod
    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        """Choose one of ``candidates`` (never empty). Must not block, must not keep references to them."""

    def observe(self, fact: RouterFact) -> None:
        """Learn what became of requests. Called in order per request. Default: forget it."""
