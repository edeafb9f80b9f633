"""Counts what one leg did on a worker, from its chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynamo_sdk.metrics import WorkerMetrics
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.types import GenerateChunk, GenerateRequest, LoadSnapshot, Role


class LegMeter:
    """One leg. ``see`` each chunk."""

    def __init__(self, metrics: WorkerMetrics, request: GenerateRequest) -> None:
        self._metrics = metrics
        self._request = request
        self.is_finished = False

    def see(self, chunk: GenerateChunk) -> None:
        metrics = self._metrics
        if self._request.role is not Role.PREFILL:
            metrics.decode_tokens.inc(len(chunk.token_ids))
        if chunk.finish_reason is None:
            return
        self.is_finished = True
        usage, timing = chunk.usage, chunk.timing
        is_continued = self._request.role is Role.DECODE and self._request.kv_transfer is not None
        if usage is not None and not is_continued:
            metrics.prompt_tokens.inc(usage.num_prompt_tokens)
            metrics.cached_prompt_tokens.inc(usage.num_cached_tokens)
            metrics.prefill_tokens_computed.inc(max(0, usage.num_prompt_tokens - usage.num_cached_tokens))
        if timing is not None and timing.transfer_s > 0:
            metrics.kv_bytes_fetched.inc(timing.transfer_bytes)
            metrics.kv_transfer_s.observe(timing.transfer_s)


@contextmanager
def metered_leg(metrics: WorkerMetrics, request: GenerateRequest, clock: Clock) -> Iterator[LegMeter]:
    """Count a leg's beginning, its chunks and how it ends."""
    meter = LegMeter(metrics, request)
    started_s = clock.now_s()
    metrics.inflight.inc()
    try:
        yield meter
    except Exception:
        metrics.failed.inc()
        raise
    except BaseException:  # cancelled, or closed by the reader
        (metrics.succeeded if meter.is_finished else metrics.cancelled).inc()
        raise
    else:
        (metrics.succeeded if meter.is_finished else metrics.failed).inc()
    finally:
        metrics.inflight.dec()
        metrics.duration_s.observe(clock.now_s() - started_s)


def observe_load(metrics: WorkerMetrics, load: LoadSnapshot | None) -> None:
    """Set the gauges to what the engine says now."""
    if load is not None:
        metrics.running.set(load.num_running)
        metrics.waiting.set(load.num_waiting)
        metrics.total_blocks.set(load.num_blocks)
        metrics.active_blocks.set(load.num_blocks - load.num_free_blocks)
