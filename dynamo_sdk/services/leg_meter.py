"""Counts what one leg did on a worker, from its chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dynamo_sdk.interfaces import ItemSource, OpensSources
from dynamo_sdk.metrics import WorkerMetrics
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.types import GenerateChunk, GenerateRequest, LoadSnapshot, Role


class LegMeter:
    """One leg, from its beginning on: ``see`` each chunk, ``end`` once."""

    __slots__ = ("_clock", "_metrics", "_request", "_started_s", "is_finished")

    def __init__(self, metrics: WorkerMetrics, request: GenerateRequest, clock: Clock) -> None:
        self._metrics = metrics
        self._request = request
        self._clock = clock
        self._started_s = clock.now_s()
        self.is_finished = False
        metrics.inflight.inc()

    def end(self, *, has_failed: bool = False) -> None:
        """``has_failed`` says that it was the worker; else a leg that is not finished was cancelled."""
        metrics = self._metrics
        if has_failed:
            metrics.failed.inc()
        else:
            (metrics.succeeded if self.is_finished else metrics.cancelled).inc()
        metrics.inflight.dec()
        metrics.duration_s.observe(self._clock.now_s() - self._started_s)

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
        if timing is not None and timing.transfer_s > 0 and is_continued:  # else it came from the own tiers
            metrics.transferred(timing.transfer_back_end, timing.transfer_bytes, timing.transfer_s)


@contextmanager
def metered_leg(metrics: WorkerMetrics, request: GenerateRequest, clock: Clock) -> Iterator[LegMeter]:
    """Count a leg's beginning, its chunks and how it ends."""
    meter = LegMeter(metrics, request, clock)
    try:
        yield meter
    except Exception:
        meter.end(has_failed=True)
        raise
    except BaseException:  # cancelled, or closed by the reader
        meter.end()
        raise
    else:
        meter.end(has_failed=not meter.is_finished)


class MeteredSource(ItemSource[GenerateChunk]):
    """``metered_leg`` for a leg that is taken by plain calls."""

    __slots__ = ("_chunks", "_has_failed", "_is_closed", "_meter", "is_over")

    def __init__(self, chunks: ItemSource[GenerateChunk], meter: LegMeter) -> None:
        self._chunks, self._meter = chunks, meter
        self._has_failed = self._is_closed = self.is_over = False

    def listen(self, on_ready: Callable[[], None]) -> None:
        self._chunks.listen(on_ready)

    def take(self) -> GenerateChunk | None:
        try:
            chunk = self._chunks.take()
        except Exception:
            self._has_failed = True
            raise
        if chunk is not None:
            self._meter.see(chunk)
            self.is_over = self._chunks.is_over
        return chunk

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._chunks.close()
            self._meter.end(has_failed=self._has_failed)


def open_metered(
    engine: OpensSources, metrics: WorkerMetrics, request: GenerateRequest, clock: Clock
) -> MeteredSource:
    """Begin a leg. Raises what ``engine`` raises."""
    meter = LegMeter(metrics, request, clock)
    try:
        return MeteredSource(engine.open(request), meter)
    except BaseException:
        meter.end(has_failed=True)
        raise


def observe_load(metrics: WorkerMetrics, load: LoadSnapshot | None) -> None:
    """Set the gauges to what the engine says now."""
    if load is not None:
        metrics.running.set(load.num_running)
        metrics.waiting.set(load.num_waiting)
        metrics.total_blocks.set(load.num_blocks)
        metrics.active_blocks.set(load.num_blocks - load.num_free_blocks)
