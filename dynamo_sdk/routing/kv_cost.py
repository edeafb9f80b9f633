"""What a request would cost on each worker, in seconds: how long it waits there, and others because of it.

=============  =========================================================================================
term           what it estimates
=============  =========================================================================================
wait_s         until the worker begins with it: prompts in line before it, and the step under way
prefill_s      its own prompt, less what is cached there, beside what is being decoded there
others_s       what it holds up: those that decode beside it once, and as many behind it as are in line before
memory_s       until there are KV blocks for it; and the same for the next request after it
decode_s       decode pools only: how much slower its answer is for all that is decoded there
=============  =========================================================================================

Every rate is measured (``routing/rates.py``), so nothing is set for a model, a GPU or a kind of traffic. What
is in a tier below the device costs its load (``routing/tier_costs.py``). Lines are served in order. What is
overdue will be late by as much again: a worker that hangs gets dearer by the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, CostTerm, RoutingContext, RoutingRequest
from dynamo_sdk.interfaces.router import NO_OVERLAP
from dynamo_sdk.types import Role

from .config import KvConfig
from .rates import PRIOR_S_PER_REQUEST, PRIOR_S_PER_TOKEN
from .stages import BatchScorer
from .tier_costs import load_times, share_saved

NAMES = ("wait_s", "prefill_s", "others_s", "memory_s", "decode_s")

_Parts = tuple[float, float, float, float, float]

_SHARE_OF_CHANCE = 0.25
"""A worker with so much more than its share of recent work had more luck; with twice as much more, it gets no
credit for what it has cached. Else traffic that never queues would stay for ever where it came first."""


_NEGLIGIBLE = 10.0
"""So many requests of the mean size still fit: nobody will wait for memory."""


class KvCost(BatchScorer):
    """See the table above. ``config``: what a cached block is worth by tier, and how old a report may be."""

    uses_overlap = True

    def __init__(self, config: KvConfig | None = None) -> None:
        config = config or KvConfig()
        self._host = config.host_credit
        self._disk = config.disk_credit
        self._remote = config.remote_credit
        self._max_load_age_s = config.max_load_age_s

    def totals(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[float]:
        parts = self._parts(request, candidates, context.now_s)
        return [wait + prefill + others + memory + decode for wait, prefill, others, memory, decode in parts]

    def terms(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[tuple[CostTerm, ...]]:
        return [
            tuple(map(CostTerm, NAMES, parts)) for parts in self._parts(request, candidates, context.now_s)
        ]

    def _parts(self, request: RoutingRequest, candidates: Sequence[Candidate], now_s: float) -> list[_Parts]:
        """One loop without a call per candidate: there may be hundreds, for each request."""
        num_tokens, role = request.num_tokens, request.role
        block_size = request.block_size if role is not Role.PREFILL else None
        num_requests = num_active_tokens = 0
        mean_recent_s = 0.0
        for candidate in candidates:
            num_requests += candidate.num_active_requests
            num_active_tokens += candidate.num_active_tokens
            mean_recent_s += candidate.recent_prefill_s
        mean_recent_s /= len(candidates)
        mean_tokens = num_active_tokens / num_requests if num_requests else float(num_tokens)

        parts: list[_Parts] = []
        for candidate in candidates:
            s_per_token = candidate.prefill_s_per_token
            s_per_request = candidate.prefill_s_per_request
            if not s_per_token and not s_per_request:
                s_per_request, s_per_token = PRIOR_S_PER_REQUEST, PRIOR_S_PER_TOKEN
            num_active_tokens = candidate.num_active_tokens
            beside_s = candidate.prefill_s_per_active_token * num_active_tokens

            num_uncached, num_lower = float(num_tokens), 0.0
            overlap = candidate.overlap
            if overlap is not NO_OVERLAP:
                if overlap.host_blocks or overlap.disk_blocks or overlap.remote_blocks:
                    num_lower = self._num_saved_below(request, candidate, s_per_token)
                num_uncached -= self._num_cached(request, candidate, num_lower)
                usual_s = mean_recent_s + 2 * (s_per_request + s_per_token * num_tokens)
                excess = (candidate.recent_prefill_s - mean_recent_s) / usual_s / _SHARE_OF_CHANCE - 1
                if excess > 0:
                    num_uncached += min(1.0, excess) * (num_tokens - num_uncached)
            prefill_s = s_per_request + s_per_token * num_uncached

            wait_s = s_per_token * candidate.num_other_prefill_tokens
            num_before, since_s = candidate.num_prefill_requests, candidate.prefill_since_s
            if num_before and since_s is not None:
                num_first = candidate.first_prefill_tokens
                first_s = s_per_request + s_per_token * num_first + beside_s
                behind_s = s_per_request * (num_before - 1)
                behind_s += s_per_token * (candidate.num_prefill_tokens - num_first)
                wait_s += behind_s + abs(first_s - (now_s - since_s))
            elif beside_s and candidate.step_at_s is not None:
                wait_s += max(0.0, beside_s - (now_s - candidate.step_at_s))

            memory_s = decode_s = 0.0
            if block_size is not None:
                num_blocks, num_used = self._blocks(candidate, block_size, now_s)
                mean_blocks = max(1.0, mean_tokens / block_size)
                num_new = min(num_uncached + num_lower, num_tokens)  # what is loaded takes blocks, too
                excess = num_used + num_new / block_size - num_blocks
                if num_blocks and excess > -_NEGLIGIBLE * mean_blocks:
                    s_per_block = candidate.decode_s_per_request / num_blocks
                    next_blocks = mean_blocks * math.exp(min(0.0, excess / mean_blocks)) + max(0.0, excess)
                    memory_s = max(0.0, excess * s_per_block - wait_s) + next_blocks * s_per_block
            if role is Role.DECODE and candidate.decode_s_per_token:
                decode_s = beside_s * candidate.decode_s_per_request / candidate.decode_s_per_token
            parts.append((wait_s, prefill_s + beside_s, prefill_s * (1 + num_before), memory_s, decode_s))
        return parts

    def _num_cached(self, request: RoutingRequest, candidate: Candidate, num_lower: float) -> float:
        """Tokens that need no computing, and those below the device for what they spare; the last one is
        always computed."""
        num_cached = candidate.overlap.device_blocks * (request.block_size or 0) + num_lower
        return min(num_cached, request.num_tokens - 1.0)

    def _num_saved_below(self, request: RoutingRequest, candidate: Candidate, s_per_token: float) -> float:
        """As many tokens as could be computed in the time that loading spares. A block costs the time of its
        load, where the worker says what that is, or that of computing it, if that is less; else a share."""
        overlap, times = candidate.overlap, load_times(candidate)
        block_s = s_per_token * (request.block_size or 0)
        shares = (
            overlap.host_blocks * share_saved(times.host_s, block_s, self._host)
            + overlap.disk_blocks * share_saved(times.disk_s, block_s, self._disk)
            + overlap.remote_blocks * share_saved(times.remote_s, block_s, self._remote)
        )
        return shares * (request.block_size or 0)

    def _blocks(self, candidate: Candidate, block_size: int, now_s: float) -> tuple[int, int]:
        """How many there are, 0 if nobody knows; and how many are in use, or will be by those in line. A
        report knows which blocks are shared. Those that have begun since it came count twice, so it counts
        at most what our requests have, if there are no others."""
        load, at_s = candidate.load, candidate.load_at_s
        if load is None or at_s is None or now_s - at_s > self._max_load_age_s or not load.num_blocks:
            return candidate.num_blocks or 0, candidate.num_active_blocks
        num_used = load.num_blocks - load.num_free_blocks + candidate.num_prefill_tokens // block_size
        if not candidate.num_other_requests:
            num_used = min(num_used, candidate.num_active_tokens // block_size)
        return load.num_blocks, num_used
