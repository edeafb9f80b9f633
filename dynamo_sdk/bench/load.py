"""When a load ends, and what has happened in it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from .record import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """``concurrency``: lanes, None = open. The load ends after ``max_requests`` measured ones or
    ``duration_s`` of them, whichever is first; the first ``num_warmup`` requests are not measured."""

    concurrency: int | None
    max_requests: int | None
    duration_s: float | None
    num_warmup: int
    timeout_s: float


@dataclass(slots=True)
class Load:
    """What happened, so far. Moments are seconds after the start of the load."""

    now_s: float = 0.0
    num_sent: int = 0
    num_unfinished: int = 0
    records: list[RequestRecord] = field(default_factory=list)
    gaps_s: array[float] = field(default_factory=lambda: array("f"))
    loop_lags_s: array[float] = field(default_factory=lambda: array("f"))
    began_s: float | None = None
    """When the first measured request was sent."""
    cpu_s: float = 0.0
    """Processor time of the client, from then to the end."""
    num_failed: int = 0
    num_output_tokens: int = 0

    @property
    def num_running(self) -> int:
        return self.num_sent - len(self.records)
