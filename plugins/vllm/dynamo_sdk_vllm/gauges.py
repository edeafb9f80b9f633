"""``Gauges``: how busy the engine is, from our own count of requests and vLLM's statistics.

vLLM reports after a step, and takes none while nothing runs: what it said last can be out of date then.
"""

from __future__ import annotations

import time
from typing import Any

from dynamo_sdk.engines.leg_gauges import LegGauges
from dynamo_sdk.types import ForwardPassMetrics


class Gauges(LegGauges[str]):
    """All times are of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self._dp_size = 1
        self._usage: dict[int, float] = {}  # of KV blocks, by rank
        self._held_until_s = 0.0  # blocks that were handed over are held, perhaps until then
        self._step = 0
        self._step_began_s: float | None = None

    def begin(self, *, num_blocks: int, dp_size: int) -> None:
        """``num_blocks``: of all ranks together."""
        self.num_blocks, self._dp_size = num_blocks, dp_size

    def enter(self, name: str, *, num_tokens: int) -> None:
        if not self.num_active:
            self._step_began_s = time.monotonic()
        super().enter(name, num_tokens=num_tokens)

    def hand_over(self, lease_s: float) -> None:
        self._held_until_s = time.monotonic() + lease_s

    def read(self, rank: int, scheduler: Any, iteration: Any, now_s: float) -> ForwardPassMetrics | None:
        """What vLLM reports after a step; None where it is no step."""
        if scheduler is not None:
            self._usage[rank] = scheduler.kv_cache_usage
        if scheduler is None or iteration is None:
            return None
        began_s, self._step_began_s = self._step_began_s, now_s
        self._step += 1
        num_prefill_requests = len(iteration.time_to_first_tokens_iter)
        return ForwardPassMetrics(
            step=self._step,
            at_s=now_s,
            wall_s=0.0 if began_s is None else now_s - began_s,
            num_prefill_requests=num_prefill_requests,
            num_prefill_tokens=iteration.num_prompt_tokens,
            num_decode_requests=max(0, scheduler.num_running_reqs - num_prefill_requests),
            num_preempted=iteration.num_preempted_reqs,
            num_waiting=scheduler.num_waiting_reqs,
            num_waiting_tokens=self.num_waiting_tokens,
            num_free_blocks=self.num_free_blocks(now_s),
        )

    def num_free_blocks(self, now_s: float) -> int:
        if not self.num_active and now_s >= self._held_until_s:
            return self.num_blocks
        per_rank = self.num_blocks / self._dp_size
        return round(self.num_blocks - per_rank * sum(self._usage.values()))
