"""What became of the requests and workers of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo_sdk.interfaces import KVTiersStatistics


class RequestRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Filled in as it happens. Times in seconds of virtual time; tokens are counts.

    ``num_cached_tokens``: of the prompt, found where it was first prefilled; ``num_reused_tokens``: the most
    of any of its prefills, of which there are more after a preemption. ``num_predicted_tokens``: what the
    router counted on, None where it did not look. ``num_loaded_tokens``: of the cached ones, those that came
    from tiers below the device, in ``load_s``.
    """

    index: int
    arrival_s: float
    num_input_tokens: int
    num_output_tokens: int
    session: str | None = None
    workers: list[str] = []
    routed_s: float | None = None
    admitted_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0
    num_cached_tokens: int = 0
    num_reused_tokens: int = 0
    num_predicted_tokens: int | None = None
    transfer_s: float = 0.0
    transfer_bytes: int = 0
    num_loaded_tokens: int = 0
    load_s: float = 0.0
    num_preemptions: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> float | None:
        return None if self.last_token_s is None else self.last_token_s - self.arrival_s

    @property
    def itl_s(self) -> float | None:
        """Mean time between its tokens; None for one token."""
        if self.first_token_s is None or self.last_token_s is None or self.num_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.num_tokens - 1)


class WorkerRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``busy_s``: in steps, summed over ranks. ``until_s``: when it left, or the end."""

    worker_id: str
    service: str
    role: str
    num_gpus: int
    since_s: float
    until_s: float
    num_requests: int
    num_prefill_tokens: int
    num_steps: int
    num_preempted: int
    busy_s: float


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """A planner's decision: from ``at_s`` on ``service`` was to have ``num_replicas``."""

    at_s: float
    service: str
    num_replicas: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of a workload. ``gap_s``, ``gap_counts``: times between tokens of one request, and how often
    each occurred. ``scalings``: what a planner changed. ``tiers``: those of all workers together."""

    router: str
    requests: list[RequestRecord]
    workers: list[WorkerRecord]
    gap_s: npt.NDArray[np.float64] = field(repr=False)
    gap_counts: npt.NDArray[np.int64] = field(repr=False)
    ended_s: float
    scalings: list[Scaling] = field(default_factory=list)
    tiers: KVTiersStatistics = field(default_factory=lambda: KVTiersStatistics(tiers=()))
