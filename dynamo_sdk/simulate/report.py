"""From records to figures. Everything is in virtual time, so equal runs give equal bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from dynamo_sdk.bench.report import Summary, Targets
from dynamo_sdk.interfaces import KVTiersStatistics

from .arrivals import Workload
from .record import Outcome, RequestRecord, Scaling, WorkerRecord

_NUMBER = re.compile(r"\d+")


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that met the targets: a second, and as a share of all."""

    targets: Targets
    requests_per_s: float
    share: float


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of all prompt tokens. ``predicted``: that the router counted on (None = it looked at none);
    ``cached``: found when a request was first prefilled; ``loaded``: of these, from tiers below the device
    (None = there are none); ``with_restarts``: the same, where a request that
    lost its blocks counts with the most that any of its prefills found, which may be its own; ``reusable``:
    what one cache without end would find."""

    predicted: float | None
    cached: float
    loaded: float | None
    with_restarts: float
    reusable: float


class Transfers(msgspec.Struct, frozen=True, kw_only=True):
    """KV from prefill to decode workers. ``ms``: per request, the time on the wire."""

    num_bytes: int
    ms: Summary | None


class Tiers(msgspec.Struct, frozen=True, kw_only=True):
    """Tiers below the devices, each of all workers together. ``ms``: how long a request that loaded something
    waited for it."""

    statistics: KVTiersStatistics
    ms: Summary | None


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """The busiest worker over the mean of its service, 1 = even; the worst service counts."""

    requests: float
    prefill_tokens: float
    busy: float


class PolicyReport(msgspec.Struct, frozen=True, kw_only=True):
    """One router on one workload. ``seconds``: from the first arrival to the last token; rates are per second
    of it. Latencies are of requests that ended well; ``itl_ms``: the mean of each request; ``gap_ms``: single
    gaps between tokens; ``queue_ms``: from arrival to the first step."""

    router: str
    seconds: float
    num_requests: int
    num_ok: int
    num_preemptions: int
    errors: dict[str, int]
    ttft_ms: Summary | None
    itl_ms: Summary | None
    gap_ms: Summary | None
    e2e_ms: Summary | None
    queue_ms: Summary | None
    requests_per_s: float
    output_tokens_per_s: float
    goodput: Goodput | None
    reuse: Reuse
    transfers: Transfers | None
    tiers: Tiers | None
    balance: Balance
    worker_hours: float
    gpu_hours: float
    workers: list[WorkerRecord]
    scalings: list[Scaling]


class WorkloadReport(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    num_requests: int
    num_input_tokens: int
    num_output_tokens: int
    block_tokens: int


class SimReport(msgspec.Struct, frozen=True, kw_only=True):
    """``settings``: what was asked for."""

    settings: dict[str, str | int | float | None]
    workload: WorkloadReport
    policies: list[PolicyReport]


def make_report(
    workload: Workload,
    outcomes: Sequence[Outcome],
    *,
    targets: Targets,
    settings: dict[str, str | int | float | None],
) -> SimReport:
    """One report of all policies."""
    reusable = workload.reusable_share
    return SimReport(
        settings=settings,
        workload=WorkloadReport(
            name=workload.name,
            num_requests=len(workload.arrivals),
            num_input_tokens=workload.num_input_tokens,
            num_output_tokens=sum(arrival.num_output_tokens for arrival in workload.arrivals),
            block_tokens=workload.block_tokens,
        ),
        policies=[_policy(outcome, targets, reusable) for outcome in outcomes],
    )


def _grouped(errors: Iterable[str]) -> dict[str, int]:
    """How often each error came, the most frequent first. Those that differ in numbers alone, such as the
    length of a prompt, are one, with N for the numbers."""
    kinds: dict[str, Counter[str]] = {}
    for error in errors:
        kinds.setdefault(_NUMBER.sub("N", error), Counter())[error] += 1
    named = {kind if len(seen) > 1 else next(iter(seen)): seen.total() for kind, seen in kinds.items()}
    return dict(sorted(named.items(), key=lambda item: -item[1]))


def _policy(outcome: Outcome, targets: Targets, reusable: float) -> PolicyReport:
    records = outcome.requests
    good = [record for record in records if record.last_token_s is not None]
    began_s = records[0].arrival_s if records else 0.0
    seconds = outcome.ended_s - began_s
    per_s = 1 / seconds if seconds > 0 else 0.0
    num_good = sum(_meets(record, targets) for record in good)
    worker_s = [(worker, worker.until_s - worker.since_s) for worker in outcome.workers]
    return PolicyReport(
        router=outcome.router,
        seconds=seconds,
        num_requests=len(records),
        num_ok=len(good),
        num_preemptions=sum(worker.num_preempted for worker in outcome.workers),
        errors=_grouped([record.error for record in records if record.error is not None]),
        ttft_ms=_in_ms([record.ttft_s for record in good]),
        itl_ms=_in_ms([record.itl_s for record in good]),
        gap_ms=_weighted_in_ms(outcome),
        e2e_ms=_in_ms([record.e2e_s for record in good]),
        queue_ms=_in_ms(
            [None if r.admitted_s is None else max(0.0, r.admitted_s - r.arrival_s) for r in good]
        ),
        requests_per_s=len(good) * per_s,
        output_tokens_per_s=sum(record.num_tokens for record in good) * per_s,
        goodput=(
            Goodput(
                targets=targets,
                requests_per_s=num_good * per_s,
                share=num_good / len(records) if records else 0.0,
            )
            if targets
            else None
        ),
        reuse=_reuse(records, reusable, has_tiers=bool(outcome.tiers.tiers)),
        transfers=_transfers(records),
        tiers=_tiers(outcome),
        balance=_balance(outcome.workers),
        worker_hours=sum(seconds for _, seconds in worker_s) / 3600,
        gpu_hours=sum(worker.num_gpus * seconds for worker, seconds in worker_s) / 3600,
        workers=outcome.workers,
        scalings=outcome.scalings,
    )


def _meets(record: RequestRecord, targets: Targets) -> bool:
    """One token has no ITL and meets any target for it."""
    ttft_s, itl_s = record.ttft_s, record.itl_s
    return (targets.ttft_ms is None or (ttft_s is not None and ttft_s * 1e3 <= targets.ttft_ms)) and (
        targets.itl_ms is None or itl_s is None or itl_s * 1e3 <= targets.itl_ms
    )


def _in_ms(values: Sequence[float | None]) -> Summary | None:
    return Summary.of(value * 1e3 for value in values if value is not None)


def _weighted_in_ms(outcome: Outcome) -> Summary | None:
    """Percentiles by rank: the smallest gap that so many are not longer than."""
    counts = outcome.gap_counts
    total = int(counts.sum())
    if not total:
        return None
    order = np.argsort(outcome.gap_s, kind="stable")
    ms, reached = outcome.gap_s[order] * 1e3, np.cumsum(counts[order])
    p50, p90, p95, p99 = (
        float(ms[np.searchsorted(reached, share * total)]) for share in (0.5, 0.9, 0.95, 0.99)
    )
    mean = float((outcome.gap_s * counts).sum() * 1e3 / total)
    return Summary(count=total, mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=float(ms[-1]))


def _reuse(records: Sequence[RequestRecord], reusable: float, *, has_tiers: bool) -> Reuse:
    num_tokens = sum(record.num_input_tokens for record in records) or 1
    predicted = [r.num_predicted_tokens for r in records if r.num_predicted_tokens is not None]
    return Reuse(
        predicted=sum(predicted) / num_tokens if predicted else None,
        cached=sum(record.num_cached_tokens for record in records) / num_tokens,
        loaded=sum(record.num_loaded_tokens for record in records) / num_tokens if has_tiers else None,
        with_restarts=sum(record.num_reused_tokens for record in records) / num_tokens,
        reusable=reusable,
    )


def _transfers(records: Sequence[RequestRecord]) -> Transfers | None:
    moved = [record for record in records if record.transfer_bytes]
    if not moved:
        return None
    return Transfers(
        num_bytes=sum(record.transfer_bytes for record in moved),
        ms=_in_ms([record.transfer_s for record in moved]),
    )


def _tiers(outcome: Outcome) -> Tiers | None:
    if not outcome.tiers.tiers:
        return None
    waits = [record.load_s for record in outcome.requests if record.num_loaded_tokens]
    return Tiers(statistics=outcome.tiers, ms=_in_ms(waits))


def _balance(workers: Sequence[WorkerRecord]) -> Balance:
    services = dict.fromkeys(worker.service for worker in workers)
    groups = [[worker for worker in workers if worker.service == service] for service in services]
    return Balance(
        requests=_worst([[worker.num_requests for worker in group] for group in groups]),
        prefill_tokens=_worst([[worker.num_prefill_tokens for worker in group] for group in groups]),
        busy=_worst([[worker.busy_s for worker in group] for group in groups]),
    )


def _worst(groups: Sequence[Sequence[float]]) -> float:
    return max([max(group) * len(group) / sum(group) for group in groups if sum(group)], default=1.0)
