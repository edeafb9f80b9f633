"""What is simulated: pools of workers, the routers before them, and how old the news are that routers get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynamo_sdk.engines.mocker import MockerConfig
from dynamo_sdk.interfaces import Planner, Router
from dynamo_sdk.types import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """One engine service. ``gpus_per_replica``: for GPU hours; a simulated replica takes at least one."""

    service: str
    role: Role
    num_replicas: int
    config: MockerConfig
    gpus_per_replica: int = 1
    model_path: str = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """One model's services. ``new_router``: makes a router for a pool; ``new_planner``: None = replica counts
    stay as they are. ``router_name``: what reports call the policy."""

    pools: tuple[PoolSpec, ...]
    router_name: str
    new_router: Callable[[Role], Router]
    new_planner: Callable[[], Planner] | None = None

    @property
    def is_disaggregated(self) -> bool:
        return any(pool.role is Role.PREFILL for pool in self.pools)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """``seed``: of all that is left to chance. ``kv_event_lag_s``, ``load_lag_s``: how long news of a worker
    take to a router. ``load_interval_s``: between two reports of one worker's load. ``has_kv_events``: False
    = engines say nothing of their caches, and routers go by what was sent where."""

    seed: int = 0
    kv_event_lag_s: float = 0.0
    load_lag_s: float = 0.0
    load_interval_s: float = 0.1
    has_kv_events: bool = True
