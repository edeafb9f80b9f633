"""From records to figures: percentiles, rates, errors by kind, and how well the client itself kept up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from .load import Load
from .record import RequestRecord

BUSY_CPU_SHARE = 0.8
LATE_S = 0.01
"""A client that is later than this at p99, or busier than the share above, was part of what it measured."""
_MIN_OUTPUT_SHARE = 0.98


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution; the unit is that of its values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float] | np.ndarray[tuple[int], np.dtype[np.float32]]) -> Summary | None:
        """Percentiles are interpolated linearly. None without values."""
        data = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if not data.size:
            return None
        p50, p90, p95, p99 = (float(x) for x in np.percentile(data, (50, 90, 95, 99)))
        return cls(
            count=int(data.size),
            mean=float(data.mean()),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(data.max()),
        )


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """What a good request keeps to, in milliseconds; None = anything."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.itl_ms is not None

    def are_met(self, record: RequestRecord) -> bool:
        """An answer of one token has no ITL and meets any target for it."""
        if record.error is not None or record.ttft_s is None:
            return False
        if self.ttft_ms is not None and record.ttft_s * 1e3 > self.ttft_ms:
            return False
        itl_s = record.itl_s
        return self.itl_ms is None or itl_s is None or itl_s * 1e3 <= self.itl_ms


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that met the targets: a second, and as a share of all measured ones, failed ones included."""

    targets: Targets
    requests_per_s: float
    share: float


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """``cpu_share``: of one core. ``loop_lag_ms``: how late the client read. ``send_lag_ms``: how late it
    sent, where requests had a time."""

    cpu_share: float
    loop_lag_ms: Summary | None
    send_lag_ms: Summary | None
    num_connections: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run, over its measured requests. ``seconds``: from the first of them sent to the
    last of them over; rates are per second of it. Tokens are those of the server's ``usage``."""

    settings: dict[str, str | int | float | None]
    seconds: float
    num_requests: int
    num_ok: int
    num_unfinished: int
    num_warmup: int
    errors: dict[str, int]
    error_examples: dict[str, str]
    ttft_ms: Summary | None
    itl_ms: Summary | None
    e2e_ms: Summary | None
    gap_ms: Summary | None
    input_tokens: Summary | None
    output_tokens: Summary | None
    cached_share: float | None
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    chunks_per_s: float
    mean_in_flight: float
    goodput: Goodput | None
    client: ClientHealth
    warnings: list[str]


def make_report(
    load: Load,
    *,
    settings: dict[str, str | int | float | None],
    targets: Targets,
    num_connections: int,
) -> Report:
    """``settings`` is what was asked for, to be found again beside the figures."""
    measured = [record for record in load.records if not record.is_warmup]
    good = [record for record in measured if record.error is None]
    began_s = load.began_s or 0.0
    seconds = max((record.sent_s + record.e2e_s for record in measured), default=load.now_s) - began_s
    per_s = 1 / seconds if seconds > 0 else 0.0
    health = ClientHealth(
        cpu_share=load.cpu_s / (load.now_s - began_s) if load.now_s > began_s else 0.0,
        loop_lag_ms=Summary.of(np.frombuffer(load.loop_lags_s, np.float32) * 1e3),
        send_lag_ms=Summary.of(lag * 1e3 for record in measured if (lag := record.lag_s) is not None),
        num_connections=num_connections,
    )
    counted = [record for record in good if record.num_output_tokens is not None]
    num_input = sum(record.num_input_tokens or 0 for record in counted)
    num_output = sum(record.num_output_tokens or 0 for record in counted)
    cached = [record for record in counted if record.num_cached_tokens is not None]
    num_cached = sum(record.num_cached_tokens or 0 for record in cached)
    num_met = sum(map(targets.are_met, measured))
    goodput = Goodput(
        targets=targets,
        requests_per_s=num_met * per_s,
        share=num_met / len(measured) if measured else 0.0,
    )
    return Report(
        settings=settings,
        seconds=seconds,
        num_requests=len(measured),
        num_ok=len(good),
        num_unfinished=load.num_unfinished,
        num_warmup=len(load.records) - len(measured),
        errors=dict(Counter(record.error for record in measured if record.error is not None).most_common()),
        error_examples={r.error: r.message or "" for r in reversed(measured) if r.error is not None},
        ttft_ms=Summary.of(r.ttft_s * 1e3 for r in good if r.ttft_s is not None),
        itl_ms=Summary.of(itl * 1e3 for r in good if (itl := r.itl_s) is not None),
        e2e_ms=Summary.of(r.e2e_s * 1e3 for r in good),
        gap_ms=Summary.of(np.frombuffer(load.gaps_s, np.float32) * 1e3),
        input_tokens=Summary.of(float(r.num_input_tokens or 0) for r in counted),
        output_tokens=Summary.of(float(r.num_output_tokens or 0) for r in counted),
        cached_share=num_cached / sum(r.num_input_tokens or 0 for r in cached) if num_cached else None,
        requests_per_s=len(good) * per_s,
        input_tokens_per_s=num_input * per_s,
        output_tokens_per_s=num_output * per_s,
        chunks_per_s=sum(r.num_chunks for r in good) * per_s,
        mean_in_flight=sum(r.e2e_s for r in measured) * per_s,
        goodput=goodput if targets else None,
        client=health,
        warnings=[*_client_warnings(health), *_token_warnings(good)],
    )


def _client_warnings(health: ClientHealth) -> list[str]:
    found: list[str] = []
    if health.cpu_share > BUSY_CPU_SHARE:
        found.append(
            f"the client used {health.cpu_share:.0%} of a core and may have been the bottleneck; "
            "spread the load over several clients"
        )
    for what, lag in (("read", health.loop_lag_ms), ("sent", health.send_lag_ms)):
        if lag is not None and lag.p99 > LATE_S * 1e3:
            found.append(
                f"the client {what} {lag.p99:.0f} ms late at p99: do not trust latencies below that; "
                "give it a core of its own"
            )
    return found


def _token_warnings(good: Sequence[RequestRecord]) -> list[str]:
    if not good:
        return []
    counted = [record for record in good if record.num_output_tokens is not None]
    if len(counted) < len(good):
        return [
            f"{len(good) - len(counted)} of {len(good)} answers name no usage: their tokens are not counted "
            "and they have no ITL"
        ]
    asked = sum(record.num_asked_output_tokens for record in counted)
    got = sum(record.num_output_tokens or 0 for record in counted)
    if got < asked * _MIN_OUTPUT_SHARE:
        return [
            f"answers had {got / len(counted):.0f} tokens on average of {asked / len(counted):.0f} asked; "
            "many servers take --extra '{\"ignore_eos\": true}'"
        ]
    return []
