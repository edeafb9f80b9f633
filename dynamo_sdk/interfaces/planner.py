"""``Planner``: how many replicas run. Read this file to write one.

Synchronous and pure, like a router: the shell brings measurements and time, carries the effects out,
and calls again at ``next_tick_s``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec


class ServiceLoad(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service since the last tick. Times in milliseconds; None = nothing was measured."""

    service: str
    num_replicas: int
    num_ready: int
    gpus_per_replica: int = 0
    min_replicas: int = 1
    max_replicas: int | None = None
    requests_per_s: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    isl_mean_tokens: float | None = None
    osl_mean_tokens: float | None = None
    ttft_p50_ms: float | None = None
    itl_p50_ms: float | None = None
    kv_usage: float | None = None  # 0..1, mean over replicas


class PlannerInput(msgspec.Struct, frozen=True, kw_only=True):
    """``num_free_gpus``: what the inventory has left, None = unlimited."""

    now_s: float
    services: tuple[ServiceLoad, ...]
    num_free_gpus: int | None = None


class PlannerEffects(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``scale_to``: service -> replicas, only what should change; ``reasons``: one sentence each."""

    next_tick_s: float
    scale_to: dict[str, int] = {}
    reasons: tuple[str, ...] = ()


class Planner(ABC):
    """Decides replica counts."""

    @abstractmethod
    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        """Decide once. ``next_tick_s`` must lie after ``facts.now_s``; targets within min and max."""
