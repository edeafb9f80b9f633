"""``Gauges``: how busy the engine is, from our own count of requests and vLLM's statistics.

vLLM reports after a step, and takes none while nothing runs: what it said last can be out of date then.
"""

from __future__ import annotations

import time
from typing import Any

from dynamo_sdk.types import ForwardPassMetrics, LoadSnapshot


class Gauges:
    """All times are of the monotonic clock."""

    def __init__(self) -> None:
        self._num_blocks = 0
        self._dp_size = 1
        self._waiting: dict[str, int] = {}  # tokens of requests without a token yet
        self._running: set[str] = set()
        self._usage: dict[int, float] = {}  # of KV blocks, by rank
        self._held_until_s = 0.0  # blocks that were handed over are held, perhaps until then
        self._step = 0
        self._step_began_s: float | None = None

    def begin(self, *, num_blocks: int, dp_size: int) -> None:
        """``num_blocks``: of all ranks together."""
        self._num_blocks, self._dp_size = num_blocks, dp_size

    @property
    def request_ids(self) -> list[str]:
        return [*self._waiting, *self._running]

    @property
    def num_active(self) -> int:
        return len(self._waiting) + len(self._running)

    def enter(self, request_id: str, *, num_tokens: int) -> None:
        if not self.num_active:
            self._step_began_s = time.monotonic()
        self._waiting[request_id] = num_tokens

    def saw_token(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self._running.add(request_id)

    def leave(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        self._running.discard(request_id)

    def hand_over(self, lease_s: float) -> None:
        self._held_until_s = time.monotonic() + lease_s

    def snapshot(self, now_s: float) -> LoadSnapshot:
        return LoadSnapshot(
            at_s=now_s,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_tokens=sum(self._waiting.values()),
            num_free_blocks=self._num_free_blocks(now_s),
            num_blocks=self._num_blocks,
        )

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
            num_waiting_tokens=sum(self._waiting.values()),
            num_free_blocks=self._num_free_blocks(now_s),
        )

    def _num_free_blocks(self, now_s: float) -> int:
        if not self.num_active and now_s >= self._held_until_s:
            return self._num_blocks
        per_rank = self._num_blocks / self._dp_size
        return round(self._num_blocks - per_rank * sum(self._usage.values()))
