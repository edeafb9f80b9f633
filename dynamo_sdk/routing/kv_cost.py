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

Every rate is measured (``routing/rates.py``), so nothing is set for a model, a GPU or a kind of traffic.
Lines are served in order. What is overdue will be late by as much again: a worker that hangs gets dearer by
the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_sdk.interfaces import Candidate, CostTerm, RoutingContext, RoutingRequest
from dynamo_sdk.types import Role

from .config import KvConfig
from .rates import PRIOR_S_PER_REQUEST, PRIOR_S_PER_TOKEN
from .stages import BatchScorer

NAMES = ("wait_s", "prefill_s", "others_s", "memory_s", "decode_s")

_Parts = tuple[float, float, float, float, float]

_SHARE_OF_CHANCE = 0.25
"""A worker with so much more than its share of recent work had more luck; with twice as much more, it gets no
credit for what it has cached. Else traffic that never queues would stay for ever where it came first."""


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
        return [sum(parts) for parts in self._parts(request, candidates, context.now_s)]

    def terms(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[tuple[CostTerm, ...]]:
        return [
            tuple(map(CostTerm, NAMES, parts)) for parts in self._parts(request, candidates, context.now_s)
        ]

    def _parts(self, request: RoutingRequest, candidates: Sequence[Candidate], now_s: float) -> list[_Parts]:
        mean_recent_s = sum([candidate.recent_prefill_s for candidate in candidates]) / len(candidates)
        sized = [candidate.num_active_tokens for candidate in candidates if candidate.num_active_requests]
        num_requests = sum(candidate.num_active_requests for candidate in candidates)
        mean_tokens = sum(sized) / num_requests if num_requests else request.num_tokens
        return [
            self._parts_of(request, candidate, now_s, mean_recent_s, mean_tokens) for candidate in candidates
        ]

    def _parts_of(
        self,
        request: RoutingRequest,
        candidate: Candidate,
        now_s: float,
        mean_recent_s: float,
        mean_tokens: float,
    ) -> _Parts:
        num_tokens = request.num_tokens
        s_per_request = candidate.prefill_s_per_request
        s_per_token = candidate.prefill_s_per_token
        if not s_per_request and not s_per_token:
            s_per_request, s_per_token = PRIOR_S_PER_REQUEST, PRIOR_S_PER_TOKEN
        beside_s = candidate.prefill_s_per_active_token * candidate.num_active_tokens

        num_uncached = float(num_tokens)
        overlap = candidate.overlap
        if overlap.num_blocks:
            credit = overlap.device_blocks + overlap.host_blocks * self._host
            credit += overlap.disk_blocks * self._disk + overlap.remote_blocks * self._remote
            num_uncached = max(1.0, num_tokens - credit * (request.block_size or 0))
            usual_s = mean_recent_s + 2 * (s_per_request + s_per_token * num_tokens)
            excess = (candidate.recent_prefill_s - mean_recent_s) / usual_s / _SHARE_OF_CHANCE - 1
            if excess > 0:
                num_uncached += min(1.0, excess) * (num_tokens - num_uncached)
        prefill_s = s_per_request + s_per_token * num_uncached

        wait_s = s_per_token * candidate.num_other_prefill_tokens
        num_before = candidate.num_prefill_requests
        if num_before and candidate.prefill_since_s is not None:
            first_s = s_per_request + s_per_token * candidate.first_prefill_tokens + beside_s
            all_s = s_per_request * num_before + s_per_token * candidate.num_prefill_tokens + beside_s
            wait_s += all_s - first_s + abs(first_s - (now_s - candidate.prefill_since_s))
        elif candidate.step_at_s is not None and candidate.num_active_requests:
            wait_s += max(0.0, beside_s - (now_s - candidate.step_at_s))

        memory_s = 0.0
        if request.role is not Role.PREFILL:
            memory_s = self._memory_s(request, candidate, num_uncached, mean_tokens, now_s, wait_s)
        decode_s = 0.0
        if request.role is Role.DECODE and candidate.decode_s_per_token:
            decode_s = beside_s * candidate.decode_s_per_request / candidate.decode_s_per_token
        return wait_s, prefill_s + beside_s, prefill_s * (1 + num_before), memory_s, decode_s

    def _memory_s(
        self,
        request: RoutingRequest,
        candidate: Candidate,
        num_uncached: float,
        mean_tokens: float,
        now_s: float,
        wait_s: float,
    ) -> float:
        """Beyond ``wait_s``. Blocks come back at the rate at which answers end. The next request is taken to
        be of a size by chance, so that a worker which is nearly full is dearer before it is full."""
        load, at_s = candidate.load, candidate.load_at_s
        block_size = request.block_size
        if not block_size:
            return 0.0
        if load is not None and at_s is not None and now_s - at_s <= self._max_load_age_s and load.num_blocks:
            num_blocks, num_used = load.num_blocks, load.num_blocks - load.num_free_blocks
            num_used += candidate.num_prefill_tokens // block_size  # of those in line
            if not candidate.num_other_requests:  # some of them have begun since, and count twice
                num_used = min(num_used, candidate.num_active_tokens // block_size)
        elif candidate.num_blocks:
            num_blocks, num_used = candidate.num_blocks, candidate.num_active_blocks
        else:
            return 0.0
        num_needed = num_used + num_uncached / block_size
        mean_blocks = max(1.0, mean_tokens / block_size)
        excess = num_needed - num_blocks
        next_blocks = mean_blocks * math.exp(excess / mean_blocks) if excess < 0 else excess + mean_blocks
        s_per_block = candidate.decode_s_per_request / num_blocks
        return max(0.0, excess * s_per_block - wait_s) + next_blocks * s_per_block
