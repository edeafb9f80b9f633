"""``Gauges``: how busy the engine is, from our own count of requests and what SGLang says of its KV."""

from __future__ import annotations

from dynamo_sdk.types import ForwardPassMetrics, LoadSnapshot

from .steps import Step


class Gauges:
    """All times are of the monotonic clock."""

    def __init__(self) -> None:
        self._num_blocks = 0
        self._block_size = 1
        self._num_used_tokens = 0
        self._waiting: dict[int, int] = {}  # by call: tokens of requests without a token yet
        self._running: set[int] = set()
        self._num_steps = 0

    def begin(self, *, num_blocks: int, block_size: int) -> None:
        """``num_blocks``: of all ranks together."""
        self._num_blocks, self._block_size = num_blocks, block_size

    @property
    def num_active(self) -> int:
        return len(self._waiting) + len(self._running)

    def enter(self, number: int, *, num_tokens: int) -> None:
        self._waiting[number] = num_tokens

    def saw_token(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._running.add(number)

    def leave(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._running.discard(number)

    def use(self, num_tokens: int) -> None:
        """SGLang says how much KV is in use; what it only caches is not."""
        self._num_used_tokens = num_tokens

    def snapshot(self, now_s: float) -> LoadSnapshot:
        return LoadSnapshot(
            at_s=now_s,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_tokens=sum(self._waiting.values()),
            num_free_blocks=self._num_free_blocks(),
            num_blocks=self._num_blocks,
        )

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
            num_free_blocks=self._num_free_blocks(),
        )

    def _num_free_blocks(self) -> int:
        if not self.num_active:
            return self._num_blocks  # what SGLang said last may be out of date
        return max(0, self._num_blocks - -(-self._num_used_tokens // self._block_size))
