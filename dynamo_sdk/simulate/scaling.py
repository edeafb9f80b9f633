"""``Scaling``: the graph's planner in virtual time. It decides as it would live; replicas come and go."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from statistics import median

from dynamo_sdk.errors import PluginError
from dynamo_sdk.interfaces import Planner, PlannerInput, ServiceLoad

from .fleet import Fleet
from .frontend import Frontend
from .record import RequestRecord, Scaling
from .spec import PoolSpec
from .timeline import Order, Timeline


@dataclass(slots=True)
class PlannerLoop:
    """Ticks while requests are left. A new replica is ready ``startup_time_s`` of its engine after its order;
    one that must go gets nothing new and ends with its last request. The youngest go first, and so those that
    are not ready yet."""

    planner: Planner
    frontend: Frontend
    pools: tuple[PoolSpec, ...]
    timeline: Timeline
    decisions: list[Scaling] = field(default_factory=list)
    _starting: dict[str, list[object]] = field(default_factory=dict)  # one for each order, oldest first
    _num_seen: int = 0
    _last_tick_s: float = 0.0

    def start(self) -> None:
        self.timeline.at(0.0, Order.BEGIN, self._tick)

    def _tick(self) -> None:
        now_s = self.timeline.now_s
        effects = self.planner.on_tick(
            PlannerInput(now_s=now_s, services=tuple(self._load_of(pool, now_s) for pool in self.pools))
        )
        if effects.next_tick_s <= now_s:
            raise PluginError(f"the planner wants its next tick at {effects.next_tick_s} s, now is {now_s} s")
        reason = " ".join(effects.reasons)
        for pool in self.pools:
            wanted = effects.scale_to.get(pool.service)
            if wanted is not None:
                self._scale(pool, wanted)
                self.decisions.append(
                    Scaling(at_s=now_s, service=pool.service, num_replicas=wanted, reason=reason)
                )
        self._num_seen, self._last_tick_s = len(self.frontend.records), now_s
        if self.frontend.has_work:
            self.timeline.at(effects.next_tick_s, Order.BEGIN, self._tick)

    def _scale(self, pool: PoolSpec, wanted: int) -> None:
        fleet = self.frontend.fleet
        there = fleet.replicas(pool.service)
        starting = self._starting.setdefault(pool.service, [])
        for _ in range(wanted - len(there) - len(starting)):
            order = object()
            starting.append(order)
            ready_s = self.timeline.now_s + pool.config.startup_time_s
            self.timeline.at(ready_s, Order.NEWS, partial(self._join, fleet, pool, order))
        del starting[max(0, wanted - len(there)) :]
        for worker in there[max(0, wanted) :]:
            fleet.leave(worker)

    def _join(self, fleet: Fleet, pool: PoolSpec, order: object) -> None:
        starting = self._starting[pool.service]
        if order in starting:  # else it was taken back
            starting.remove(order)
            fleet.join(pool)

    def _load_of(self, pool: PoolSpec, now_s: float) -> ServiceLoad:
        workers = self.frontend.fleet.replicas(pool.service)
        loads = [worker.load(now_s) for worker in workers]
        new = self.frontend.records[self._num_seen :]
        seconds = now_s - self._last_tick_s
        over = [found for found in self.frontend.records if _ended_since(found, self._last_tick_s)]
        return ServiceLoad(
            service=pool.service,
            num_replicas=len(workers) + len(self._starting.get(pool.service, ())),
            num_ready=len(workers),
            gpus_per_replica=pool.gpus_per_replica,
            requests_per_s=len(new) / seconds if seconds else 0.0,
            num_running=sum(load.num_running for load in loads),
            num_waiting=sum(load.num_waiting for load in loads),
            isl_mean_tokens=_mean([found.num_input_tokens for found in new]),
            osl_mean_tokens=_mean([found.num_tokens for found in over]),
            ttft_p50_ms=_median_ms([found.ttft_s for found in over]),
            itl_p50_ms=_median_ms([found.itl_s for found in over]),
            kv_usage=_mean([1 - load.num_free_blocks / load.num_blocks for load in loads]),
        )


def _ended_since(record: RequestRecord, since_s: float) -> bool:
    return record.last_token_s is not None and record.last_token_s >= since_s


def _mean(values: list[int] | list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median_ms(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) * 1e3 if known else None
