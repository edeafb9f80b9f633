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
    """Leading blocks of the prompt that a worker holds, each counted in the fastest tier that has it.

    ``remote_blocks``: not its own, but it can read them from a tier that others fill, or from another
    worker. ``readable_blocks``: how many leading blocks its own host and disk tiers have, on the device
    too or not, which is what other workers can read; counted among the others already.
    """

    device_blocks: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    remote_blocks: int = 0
    readable_blocks: int = 0

    @property
    def num_blocks(self) -> int:
        """In any tier."""
        return self.device_blocks + self.host_blocks + self.disk_blocks + self.remote_blocks


NO_OVERLAP = Overlap()


class Candidate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One worker (or one data-parallel rank of it) that may take the request.

    Read it, do not change it, and do not keep it: whoever made it keeps it current in place.

    *Of the request*: ``overlap``, for routers with ``uses_overlap``.

    *Counted by this frontend, at once*, of the requests that it has on the worker: how many; how many of them
    have no token yet, and how many of their prompt tokens were not cached; the tokens of the one of
    them that is first in line, and since when it has been (None = none waits); the prompt tokens of all of
    them; KV blocks that they hold, as far as they were not cached, an average answer included; the seconds of
    prefill that it was given of the last requests of its pool; and when tokens last came from it.

    *Measured, by the same*: a prompt takes ``prefill_s_per_request``, ``prefill_s_per_token`` for each token
    that is not cached, and ``prefill_s_per_active_token`` for each token of requests that decode beside it;
    a token of the answer takes ``decode_s_per_token``. 0 = nothing is known yet.

    *Reported by the worker*: ``load``, which arrived at ``load_at_s`` of the router's clock (None = nothing
    yet), and what was in it beyond this frontend's own requests: those of other frontends.
    """

    worker_id: WorkerId
    dp_rank: int = 0
    num_blocks: int | None = None

    overlap: Overlap = NO_OVERLAP

    num_active_requests: int = 0
    num_prefill_requests: int = 0
    num_prefill_tokens: int = 0
    first_prefill_tokens: int = 0
    prefill_since_s: float | None = None
    num_active_tokens: int = 0
    num_active_blocks: int = 0
    step_at_s: float | None = None
    recent_prefill_s: float = 0.0

    prefill_s_per_request: float = 0.0
    prefill_s_per_token: float = 0.0
    prefill_s_per_active_token: float = 0.0
    decode_s_per_token: float = 0.0
    decode_s_per_request: float = 0.0

    load: LoadSnapshot | None = None
    load_at_s: float | None = None
    num_other_requests: int = 0
    num_other_prefill_tokens: int = 0


class RoutingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a router may know of a request. ``role`` is the pool that is being chosen from.

    ``num_tokens``: to prefill, cached or not. ``max_output_tokens``: the most that the answer can have.
    ``block_keys``: routing keys of its full blocks of ``block_size`` tokens, for routers with
    ``uses_overlap``. ``session``, ``tenant`` and ``worker_id`` (the worker that is asked for) are what the
    client says.
    """

    request_id: str
    model: str
    role: Role
    num_tokens: int
    block_size: int | None = None
    max_output_tokens: int | None = None
    block_keys: Sequence[int] = ()
    priority: int = 0
    session: str | None = None
    tenant: str | None = None
    worker_id: WorkerId | None = None


class RoutingContext(msgspec.Struct, frozen=True, kw_only=True):
    """``now_s``: monotonic seconds. ``rng``: the only source of chance. ``is_explaining``: somebody wants
    to know why, so fill ``RoutingDecision.costs``; it must not change the choice."""

    now_s: float
    rng: Random
    is_explaining: bool = False


class CostTerm(msgspec.Struct, frozen=True):
    """One named part of a candidate's cost; lower is better."""

    name: str
    value: float


class CandidateCost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a candidate would cost: the sum of ``terms``; or, for one that was left out, by whom."""

    worker_id: WorkerId
    dp_rank: int = 0
    terms: tuple[CostTerm, ...] = ()
    filtered_by: str | None = None

    @property
    def total(self) -> float:
        return sum(term.value for term in self.terms)


class RoutingDecision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The choice, and why: ``reason`` in a few words, ``costs`` for whoever asks for an explanation."""

    worker_id: WorkerId
    dp_rank: int = 0
    reason: str = ""
    costs: tuple[CandidateCost, ...] = ()


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """A request was sent to a worker. ``num_cached_tokens``: of ``num_tokens``, those that should be cached
    there; 0 where nobody looked."""

    request_id: str
    worker_id: WorkerId
    role: Role
    num_tokens: int
    dp_rank: int = 0
    num_cached_tokens: int = 0


class PrefillDone(msgspec.Struct, frozen=True, kw_only=True):
    """The worker has produced its first token for the request. ``num_cached_tokens``: those that were
    cached there, where the engine has said so by now."""

    request_id: str
    worker_id: WorkerId
    num_cached_tokens: int | None = None


class Freed(msgspec.Struct, frozen=True, kw_only=True):
    """The request no longer uses the worker. ``is_failure``: because the worker failed.

    ``num_output_tokens`` came from there. ``num_cached_tokens``: as in ``PrefillDone``, known at the latest
    now (None = the engine never said).
    """

    request_id: str
    worker_id: WorkerId
    is_failure: bool = False
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None


RouterFact = Routed | PrefillDone | Freed


class Router(ABC):
    """Chooses one of the candidates.

    ``uses_overlap``: the router looks at ``Candidate.overlap`` or at ``RoutingRequest.block_keys``. Prompts
    are hashed and looked up only for routers that say so.
    """

    uses_overlap: bool = False

    @abstractmethod
    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        """Choose one of ``candidates`` (never empty). Must not block, must not keep references to them."""

    def observe(self, fact: RouterFact, now_s: float) -> None:
        """Learn what became of requests, at ``now_s`` of the clock of ``select``. Called in order per
        request. Default: forget it."""
