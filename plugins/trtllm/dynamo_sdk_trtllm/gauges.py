"""``Gauges``: how busy the engine is, from our own count of requests and TensorRT-LLM's statistics.

TensorRT-LLM reports after an iteration, and takes none while nothing runs: what it said last is out of date
then, and all blocks count as free. Those of a hand-over that is still under way count as free, too.
"""

from __future__ import annotations

import msgspec

from dynamo_sdk.engines.leg_gauges import LegGauges
from dynamo_sdk.types import ForwardPassMetrics


class _KvCache(msgspec.Struct, rename="camel"):
    used_num_blocks: int = 0
    max_num_blocks: int = 0


class _Batch(msgspec.Struct, rename="camel"):
    num_context_requests: int = 0
    num_ctx_tokens: int = 0
    num_gen_requests: int = 0
    num_gen_kv_tokens: int = 0
    num_queued_context_requests: int = 0
    num_queued_ctx_tokens: int = 0
    num_queued_gen_requests: int = 0
    num_paused_requests: int = 0


class _Row(msgspec.Struct):
    """One iteration of one rank. Older versions lack parts of the batch's statistics: they count as 0."""

    kv_cache: _KvCache | None = msgspec.field(default=None, name="kvCacheStats")
    batch: _Batch | None = msgspec.field(default=None, name="inflightBatchingStats")
    latency_ms: float = msgspec.field(default=0.0, name="iterLatencyMS")
    rank: int | None = msgspec.field(default=None, name="attentionDpRank")


class Gauges(LegGauges[str]):
    """All times are of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self._dp_size = 1
        self._used: dict[int, int] = {}  # KV blocks, by rank
        self._step = 0

    def begin(self, *, num_blocks: int, dp_size: int) -> None:
        """``num_blocks``: of all ranks together; 0 = learn it from the statistics."""
        self.num_blocks, self._dp_size = num_blocks, dp_size

    def read(self, row: object, now_s: float) -> ForwardPassMetrics:
        """What TensorRT-LLM reports after an iteration. Raises ``ValueError`` for anything else."""
        try:
            iteration = msgspec.convert(row, _Row)
        except msgspec.ValidationError as error:
            raise ValueError(f"statistics that cannot be read: {error}") from error
        if iteration.kv_cache is not None:
            self._used[iteration.rank or 0] = iteration.kv_cache.used_num_blocks
            self.num_blocks = self.num_blocks or iteration.kv_cache.max_num_blocks * self._dp_size
        batch = iteration.batch or _Batch()
        self._step += 1
        return ForwardPassMetrics(
            step=self._step,
            at_s=now_s,
            wall_s=iteration.latency_ms / 1000,
            num_prefill_requests=batch.num_context_requests,
            num_prefill_tokens=batch.num_ctx_tokens,
            num_decode_requests=batch.num_gen_requests,
            num_decode_kv_tokens=batch.num_gen_kv_tokens,
            num_preempted=batch.num_paused_requests,
            num_waiting=batch.num_queued_context_requests + batch.num_queued_gen_requests,
            num_waiting_tokens=batch.num_queued_ctx_tokens,
            num_free_blocks=self.num_free_blocks(now_s),
        )

    def num_free_blocks(self, now_s: float) -> int:
        if not self.num_active:
            return self.num_blocks
        return max(0, self.num_blocks - sum(self._used.values()))
