"""``dynamo-kv``: the documented cost of NVIDIA Dynamo's KV router, as a baseline to compare with.

Source: ``router-design.md`` of ai-dynamo 1.x, with its defaults::

    cost = prefill_load_scale * max(0, raw_prefill_blocks - credit) + potential_decode_blocks
    raw_prefill_blocks = (active prefill tokens of the worker + tokens of the request) / block_size
    credit = device + 0.75 * host + 0.25 * disk overlap, in blocks

A prefill pool counts no decode blocks; a decode pool no prefill, and it gives no credit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_sdk.interfaces import (
    Candidate,
    CostTerm,
    PrefillDone,
    Routed,
    RouterFact,
    RoutingContext,
    RoutingRequest,
)
from dynamo_sdk.types import Role, WorkerId

from .active_blocks import ActiveBlocks
from .config import DynamoKvConfig
from .pickers import SoftmaxPicker, pick_lowest
from .staged import StagedRouter
from .stages import BatchScorer

Seat = tuple[Role, WorkerId, int]


class DynamoCost(BatchScorer):
    """Keeps its own account of active blocks, as the original does."""

    uses_overlap = True

    def __init__(self, config: DynamoKvConfig) -> None:
        self._config = config
        self._active: dict[Seat, ActiveBlocks] = {}
        self._asked: RoutingRequest | None = None

    def totals(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[float]:
        return [sum(term.value for term in terms) for terms in self.terms(request, candidates, context)]

    def terms(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> list[tuple[CostTerm, ...]]:
        self._asked = request
        return [self._cost(request, candidate) for candidate in candidates]

    def _cost(self, request: RoutingRequest, candidate: Candidate) -> tuple[CostTerm, ...]:
        config, block_size = self._config, request.block_size or 1
        active = self._active.get((request.role, candidate.worker_id, candidate.dp_rank), ActiveBlocks())
        num_blocks = math.ceil(request.num_tokens / block_size)
        decode_blocks = float(active.num_blocks_with(request.block_keys, num_blocks))
        if request.role is Role.DECODE:
            return (CostTerm("decode_blocks", decode_blocks),)
        overlap = candidate.overlap
        credit = overlap.device_blocks * config.device_credit
        credit += overlap.host_blocks * config.host_credit + overlap.disk_blocks * config.disk_credit
        raw_blocks = (active.num_prefill_tokens + request.num_tokens) / block_size
        prefill = CostTerm("prefill_blocks", config.prefill_load_scale * max(0.0, raw_blocks - credit))
        if request.role is Role.PREFILL:
            return (prefill,)
        return (prefill, CostTerm("decode_blocks", decode_blocks))

    def observe(self, fact: RouterFact) -> None:
        if isinstance(fact, Routed):
            self._begin(fact)
            return
        for seat, active in list(self._active.items()):
            if seat[1] == fact.worker_id:
                if isinstance(fact, PrefillDone):
                    active.prefill_done(fact.request_id)
                else:
                    active.remove(fact.request_id)
                    if not active.num_requests:
                        del self._active[seat]

    def _begin(self, fact: Routed) -> None:
        """The request that was just asked for is the one that is sent; of another one no keys are known."""
        asked = self._asked
        is_known = asked is not None and fact.request_id.startswith(asked.request_id)
        role, block_size = (asked.role, asked.block_size or 1) if asked is not None else (fact.role, 1)
        active = self._active.setdefault((role, fact.worker_id, fact.dp_rank), ActiveBlocks())
        active.add(
            fact.request_id,
            asked.block_keys if is_known and asked is not None else (),
            math.ceil(fact.num_tokens / block_size),
            fact.num_tokens - fact.num_cached_tokens,
        )


class DynamoKvRouter(StagedRouter):
    """The lowest documented cost, ties by chance; or by chance with a ``temperature``."""

    def __init__(self, config: DynamoKvConfig | None = None) -> None:
        config = config or DynamoKvConfig()
        self._cost = DynamoCost(config)
        picker = SoftmaxPicker(config.temperature) if config.temperature else pick_lowest
        super().__init__(scorers=[self._cost], picker=picker)

    def observe(self, fact: RouterFact, now_s: float) -> None:
        self._cost.observe(fact)
