"""``Gauges``: how busy the engine is, from our own count of requests and what SGLang says of its KV."""

from __future__ import annotations

from dynamo_sdk.engines.leg_gauges import LegGauges
from dynamo_sdk.types import ForwardPassMetrics

from .steps import Step


class Gauges(LegGauges[int]):
    """All times are of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self._block_size = 1
        self._num_used_tokens = 0
        self._num_steps = 0

    def begin(self, *, num_blocks: int, block_size: int) -> None:
        """``num_blocks``: of all ranks together."""
        self.num_blocks, self._block_size = num_blocks, block_size

    def use(self, num_tokens: int) -> None:
        """SGLang says how much KV is in use; what it only caches is not."""
        self._num_used_tokens = num_tokens

    def read(self, step: Step, now_s: float) -> ForwardPassMetrics:
        scheduled, queued = step.scheduled_requests, step.queued_requests
        self._num_steps += 1
        return ForwardPassMetrics(
            step=self._num_steps,
            at_s=now_s,
            wall_s=max(0.0, step.wall_time),
            num_prefill_requests=scheduled.num_prefill_requests,
            num_prefill_tokens=scheduled.sum_prefill_tokens,
            num_decode_requests=scheduled.num_decode_requests,
            num_decode_kv_tokens=scheduled.sum_decode_kv_tokens,
            num_waiting=queued.num_prefill_requests + queued.num_decode_requests,
            num_waiting_tokens=queued.sum_prefill_tokens,
            num_free_blocks=self.num_free_blocks(now_s),
        )

    def num_free_blocks(self, now_s: float) -> int:
        if not self.num_active:
            return self.num_blocks  # what SGLang said last may be out of date
        return max(0, self.num_blocks - -(-self._num_used_tokens // self._block_size))
