"""Every metric of the SDK in one table. Docs and dashboards are held against it by tests.

Where NVIDIA Dynamo has a series with the same meaning, ours has its name, so that its dashboards work.
Labels take values from closed sets only (models that exist, routes, outcomes), never from what a client
sends, so that the number of series stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """``buckets``: upper bounds of a histogram, in the unit that ``name`` ends with."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_TOKENS = tuple(float(2**power) for power in range(19))
_MODEL = ("worker_id", "model")
_WORKER = ("service", "worker_id", "role")


def _counter(name: str, help: str, labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, kind=MetricKind.COUNTER, help=help, labels=labels)


def _gauge(name: str, help: str, labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, kind=MetricKind.GAUGE, help=help, labels=labels)


def _histogram(name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind=MetricKind.HISTOGRAM, help=help, labels=labels, buckets=buckets)


FRONTEND_REQUESTS = _counter(
    "dynamo_frontend_requests_total",
    "Requests answered, by outcome: success, rejected (4xx), error (5xx), cancelled (the client left).",
    (*_MODEL, "endpoint", "status"),
)
FRONTEND_INFLIGHT = _gauge("dynamo_frontend_inflight_requests", "Requests being served now.", _MODEL)
FRONTEND_QUEUED = _gauge(
    "dynamo_frontend_queued_requests", "Requests waiting for their first token now.", _MODEL
)
FRONTEND_TTFT = _histogram(
    "dynamo_frontend_time_to_first_token_seconds",
    "From the last byte of a request to the first token of an answer.",
    _MODEL,
    _SECONDS,
)
FRONTEND_ITL = _histogram(
    "dynamo_frontend_inter_token_latency_seconds",
    "Time between two tokens of one choice; one observation per token after the first.",
    _MODEL,
    _SHORT_SECONDS,
)
FRONTEND_DURATION = _histogram(
    "dynamo_frontend_request_duration_seconds",
    "From the last byte of a request to the last byte of its answer.",
    _MODEL,
    _SECONDS,
)
FRONTEND_INPUT_TOKENS = _histogram(
    "dynamo_frontend_input_sequence_tokens", "Prompt tokens per prompt.", _MODEL, _TOKENS
)
FRONTEND_OUTPUT_TOKENS = _histogram(
    "dynamo_frontend_output_sequence_tokens", "Generated tokens per choice.", _MODEL, _TOKENS
)
FRONTEND_STAGE_DURATION = _histogram(
    "dynamo_frontend_stage_duration_seconds",
    "Where the time of a choice went: tokenize, route, queue, prefill, transfer, decode, sdk (the rest).",
    (*_MODEL, "stage"),
    (0.0001, 0.00025, 0.0005, *_SECONDS),
)
FRONTEND_CACHED_TOKENS = _histogram(
    "dynamo_frontend_cached_tokens",
    "Prompt tokens per choice whose KV was found, not computed; input_sequence_tokens is the denominator.",
    _MODEL,
    (0.0, *_TOKENS),
)
FRONTEND_MIGRATIONS = _counter(
    "dynamo_frontend_model_migration_total",
    "Requests moved to another worker: before their first token (new_request) or after (ongoing_request).",
    (*_MODEL, "migration_type"),
)
ROUTER_PREDICTED_CACHED_TOKENS = _counter(
    "dynamo_router_predicted_cached_tokens_total",
    "Prompt tokens that should have been cached where requests were sent, as the KV router had it.",
    _MODEL,
)
ROUTER_ACTUAL_CACHED_TOKENS = _counter(
    "dynamo_router_actual_cached_tokens_total",
    "Prompt tokens of the same requests that engines found cached; the same number when all is well.",
    _MODEL,
)
ROUTER_PARITY_CHECKS = _counter(
    "dynamo_router_parity_checks_total",
    "Workers whose block keys were compared with predicted ones: ok, no_events, different_keys, unknown.",
    (*_MODEL, "verdict"),
)
ROUTER_KV_EVENT_FAULTS = _counter(
    "dynamo_router_kv_event_faults_total",
    "Streams of KV events put right: break (begun again), gap, restart (by a snapshot), misfit (left out).",
    ("worker_id", "fault"),
)
ROUTER_SHADOW_DECISIONS = _counter(
    "dynamo_router_shadow_decisions_total",
    "Decisions that a shadow router looked on: the denominator of the other shadow series.",
    (*_MODEL, "shadow"),
)
ROUTER_SHADOW_DIFFERENT = _counter(
    "dynamo_router_shadow_different_total",
    "Decisions in which a shadow router would have chosen another worker.",
    (*_MODEL, "shadow"),
)
ROUTER_SHADOW_FAILURES = _counter(
    "dynamo_router_shadow_failures_total",
    "Decisions that a shadow router could not make.",
    (*_MODEL, "shadow"),
)
ROUTER_SHADOW_REGRET = _gauge(
    "dynamo_router_shadow_regret_seconds",
    "By how much the acting choices were dearer than a shadow's, in expected seconds, summed up.",
    (*_MODEL, "shadow"),
)

COMPONENT_REQUESTS = _counter(
    "dynamo_component_requests_total",
    "Engine requests ended, by outcome: success, error, cancelled.",
    (*_WORKER, "status"),
)
COMPONENT_INFLIGHT = _gauge(
    "dynamo_component_inflight_requests", "Engine requests that run or wait now.", _WORKER
)
COMPONENT_DURATION = _histogram(
    "dynamo_component_request_duration_seconds",
    "From an engine request's arrival to its end.",
    _WORKER,
    _SECONDS,
)
COMPONENT_PREFILL_TOKENS = _counter(
    "dynamo_component_prefill_tokens_computed_total",
    "Prompt tokens whose KV this worker computed; cached and fetched tokens do not count.",
    _WORKER,
)
COMPONENT_DECODE_TOKENS = _counter(
    "dynamo_component_decode_tokens_total",
    "Tokens of this worker's decode and whole legs; a prefill leg's one token is not among them.",
    _WORKER,
)
COMPONENT_CACHED_TOKENS = _counter(
    "dynamo_component_cached_prompt_tokens_total",
    "Prompt tokens whose KV this worker found in its prefix cache.",
    _WORKER,
)
COMPONENT_PROMPT_TOKENS = _counter(
    "dynamo_component_prompt_tokens_total",
    "Prompt tokens of all requests: the denominator of cached and computed tokens.",
    _WORKER,
)
COMPONENT_KV_TRANSFER_BYTES = _counter(
    "dynamo_component_kv_transfer_bytes_total",
    "Bytes of KV blocks fetched from other workers, counted where they arrive, by what moved them.",
    (*_WORKER, "back_end"),
)
COMPONENT_KV_TRANSFER_SECONDS = _histogram(
    "dynamo_component_kv_transfer_seconds",
    "Time to fetch the KV blocks of one request, by what moved them.",
    (*_WORKER, "back_end"),
    _SHORT_SECONDS,
)
COMPONENT_ACTIVE_BLOCKS = _gauge(
    "dynamo_component_kvstats_active_blocks", "KV blocks in use by requests now.", _WORKER
)
COMPONENT_TOTAL_BLOCKS = _gauge("dynamo_component_kvstats_total_blocks", "KV blocks the engine has.", _WORKER)
COMPONENT_RUNNING = _gauge(
    "dynamo_component_running_requests", "Requests in the engine's batch now.", _WORKER
)
COMPONENT_WAITING = _gauge(
    "dynamo_component_waiting_requests", "Requests waiting to enter the engine's batch now.", _WORKER
)

_TIER = (*_WORKER, "tier")
KVBM_MATCHED_TOKENS = _gauge(
    "kvbm_matched_tokens",
    "Prompt tokens that the device lacked and some tier had, since the start; loaded or not.",
    _WORKER,
)
KVBM_OFFLOAD_D2H = _gauge(
    "kvbm_offload_blocks_d2h", "Blocks copied from the device to host memory since the start.", _WORKER
)
KVBM_OFFLOAD_H2D = _gauge(
    "kvbm_offload_blocks_h2d", "Blocks copied from host memory to a disk since the start.", _WORKER
)
KVBM_OFFLOAD_D2D = _gauge(
    "kvbm_offload_blocks_d2d", "Blocks copied from the device to a disk since the start.", _WORKER
)
KVBM_ONBOARD_H2D = _gauge(
    "kvbm_onboard_blocks_h2d", "Blocks loaded from host memory to the device since the start.", _WORKER
)
KVBM_ONBOARD_D2D = _gauge(
    "kvbm_onboard_blocks_d2d", "Blocks loaded from a disk to the device since the start.", _WORKER
)
KVBM_LOOKUP_BLOCKS = _counter(
    "kvbm_lookup_blocks_total",
    "Blocks that arriving requests asked of a tier, the device and faster tiers lacking them.",
    _TIER,
)
KVBM_HIT_BLOCKS = _counter(
    "kvbm_hit_blocks_total", "Of these, what the tier had; lookup_blocks is the denominator.", _TIER
)
KVBM_ONBOARDED_BLOCKS = _counter(
    "kvbm_onboarded_blocks_total", "Blocks loaded from a tier to the device.", _TIER
)
KVBM_ONBOARDED_BYTES = _counter("kvbm_onboarded_bytes_total", "Bytes of these.", _TIER)
KVBM_ONBOARD_SECONDS = _counter(
    "kvbm_onboard_seconds_total", "Time that requests waited for these, failed loads included.", _TIER
)
KVBM_OFFLOADED_BLOCKS = _counter("kvbm_offloaded_blocks_total", "Blocks written to a tier.", _TIER)
KVBM_OFFLOADED_BYTES = _counter("kvbm_offloaded_bytes_total", "Bytes of these.", _TIER)
KVBM_OFFLOAD_SECONDS = _counter(
    "kvbm_offload_seconds_total", "Time that copying these took, beside the engine's steps.", _TIER
)
KVBM_SKIPPED_BLOCKS = _counter(
    "kvbm_skipped_blocks_total",
    "Blocks not written: present, rare or priority (filters), dropped (queue full), gone (evicted before).",
    (*_TIER, "reason"),
)
KVBM_EVICTED_BLOCKS = _counter(
    "kvbm_evicted_blocks_total", "Blocks that made room for others in a tier.", _TIER
)
KVBM_FAILED_BLOCKS = _counter(
    "kvbm_failed_blocks_total",
    "Blocks that a tier did not keep or find although it should have: full, broken, corrupt or busy.",
    _TIER,
)
KVBM_QUEUED_BLOCKS = _gauge("kvbm_queued_blocks", "Blocks that wait to be written to a tier now.", _TIER)
KVBM_BLOCKS = _gauge("kvbm_blocks", "Blocks that a tier holds now.", _TIER)
KVBM_USED_BYTES = _gauge("kvbm_used_bytes", "Bytes that a tier holds now.", _TIER)
KVBM_CAPACITY_BYTES = _gauge(
    "kvbm_capacity_bytes", "Bytes that a tier can hold; none where unbounded.", _TIER
)
KVBM_SHARED_LOOKUPS = _counter(
    "kvbm_shared_lookup_blocks_total", "Blocks that other workers asked of this one's tiers.", _WORKER
)
KVBM_SHARED_BLOCKS = _counter(
    "kvbm_shared_blocks_total", "Of these, what was there and went to them.", _WORKER
)
KVBM_SHARED_REFUSED = _counter(
    "kvbm_shared_refused_total", "Questions of other workers that came while too many were served.", _WORKER
)
KVBM_DECISIONS = _counter(
    "kvbm_onboard_decisions_total",
    "Requests of which some tier had more: load, recompute (which was cheaper), unmeasured (computed, too).",
    (*_WORKER, "decision"),
)

FRONTEND_METRICS = (
    FRONTEND_REQUESTS,
    FRONTEND_INFLIGHT,
    FRONTEND_QUEUED,
    FRONTEND_TTFT,
    FRONTEND_ITL,
    FRONTEND_DURATION,
    FRONTEND_INPUT_TOKENS,
    FRONTEND_OUTPUT_TOKENS,
    FRONTEND_STAGE_DURATION,
    FRONTEND_CACHED_TOKENS,
    FRONTEND_MIGRATIONS,
    ROUTER_PREDICTED_CACHED_TOKENS,
    ROUTER_ACTUAL_CACHED_TOKENS,
    ROUTER_PARITY_CHECKS,
    ROUTER_KV_EVENT_FAULTS,
    ROUTER_SHADOW_DECISIONS,
    ROUTER_SHADOW_DIFFERENT,
    ROUTER_SHADOW_FAILURES,
    ROUTER_SHADOW_REGRET,
)
COMPONENT_METRICS = (
    COMPONENT_REQUESTS,
    COMPONENT_INFLIGHT,
    COMPONENT_DURATION,
    COMPONENT_PREFILL_TOKENS,
    COMPONENT_DECODE_TOKENS,
    COMPONENT_CACHED_TOKENS,
    COMPONENT_PROMPT_TOKENS,
    COMPONENT_KV_TRANSFER_BYTES,
    COMPONENT_KV_TRANSFER_SECONDS,
    COMPONENT_ACTIVE_BLOCKS,
    COMPONENT_TOTAL_BLOCKS,
    COMPONENT_RUNNING,
    COMPONENT_WAITING,
)
KVBM_METRICS = (
    KVBM_MATCHED_TOKENS,
    KVBM_OFFLOAD_D2H,
    KVBM_OFFLOAD_H2D,
    KVBM_OFFLOAD_D2D,
    KVBM_ONBOARD_H2D,
    KVBM_ONBOARD_D2D,
    KVBM_LOOKUP_BLOCKS,
    KVBM_HIT_BLOCKS,
    KVBM_ONBOARDED_BLOCKS,
    KVBM_ONBOARDED_BYTES,
    KVBM_ONBOARD_SECONDS,
    KVBM_DECISIONS,
    KVBM_OFFLOADED_BLOCKS,
    KVBM_OFFLOADED_BYTES,
    KVBM_OFFLOAD_SECONDS,
    KVBM_SKIPPED_BLOCKS,
    KVBM_QUEUED_BLOCKS,
    KVBM_EVICTED_BLOCKS,
    KVBM_FAILED_BLOCKS,
    KVBM_BLOCKS,
    KVBM_USED_BYTES,
    KVBM_CAPACITY_BYTES,
    KVBM_SHARED_LOOKUPS,
    KVBM_SHARED_BLOCKS,
    KVBM_SHARED_REFUSED,
)
ALL_METRICS = FRONTEND_METRICS + COMPONENT_METRICS + KVBM_METRICS
