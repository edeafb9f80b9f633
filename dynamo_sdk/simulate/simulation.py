"""``simulate``: a workload against a fleet, from the first arrival to the last token."""

from __future__ import annotations

import numpy as np

from dynamo_sdk.engines.mocker.tier_statistics import together
from dynamo_sdk.errors import ConfigError

from .arrivals import Workload
from .fleet import SimWorker
from .frontend import Frontend
from .record import Outcome, Scaling, WorkerRecord
from .scaling import PlannerLoop
from .spec import FleetSpec, SimOptions
from .timeline import Timeline


def simulate(workload: Workload, spec: FleetSpec, options: SimOptions | None = None) -> Outcome:
    """Run it. Equal input gives an equal outcome. Raises ``ConfigError`` for a fleet that cannot serve."""
    options = options or SimOptions()
    sizes = {pool.config.block_size for pool in spec.pools}
    if len(sizes) != 1:
        raise ConfigError(f"the workers of one model need one block_size; there are {sorted(sizes)}")
    timeline = Timeline()
    routers = {role: spec.new_router(role) for role in dict.fromkeys(pool.role for pool in spec.pools)}
    frontend = Frontend(workload, timeline, routers, options, block_size=sizes.pop())
    for pool in spec.pools:
        for _ in range(pool.num_replicas):
            frontend.fleet.join(pool)
    planner = None
    if spec.new_planner is not None:
        planner = PlannerLoop(spec.new_planner(), frontend, spec.pools, timeline)
        planner.start()
    timeline.run()
    frontend.fleet.check_integrity()
    return _outcome(spec, frontend, planner.decisions if planner else [])


def _outcome(spec: FleetSpec, frontend: Frontend, scalings: list[Scaling]) -> Outcome:
    fleet = frontend.fleet
    ended_s = max([found.last_token_s or found.arrival_s for found in frontend.records], default=0.0)
    workers = [*fleet.gone, *fleet.workers.values()]
    tiers = [rank.core.tier_statistics() for worker in workers for rank in worker.ranks]
    gaps = [frontend.gaps, *(rank.gaps for worker in workers for rank in worker.ranks)]
    return Outcome(
        router=spec.router_name,
        requests=frontend.records,
        workers=[_worker_record(worker, ended_s) for worker in workers],
        gap_s=np.concatenate([np.frombuffer(found.seconds, np.float64) for found in gaps]),
        gap_counts=np.concatenate([np.frombuffer(found.counts, np.int64) for found in gaps]),
        ended_s=ended_s,
        scalings=scalings,
        tiers=together([found for found in tiers if found is not None]),
    )


def _worker_record(worker: SimWorker, ended_s: float) -> WorkerRecord:
    ranks = worker.ranks
    return WorkerRecord(
        worker_id=worker.record.worker_id,
        service=worker.spec.service,
        role=worker.spec.role,
        num_gpus=worker.spec.gpus_per_replica,
        since_s=worker.since_s,
        until_s=ended_s if worker.until_s is None else worker.until_s,
        num_requests=worker.num_requests,
        num_prefill_tokens=sum(rank.num_prefill_tokens for rank in ranks),
        num_steps=sum(rank.num_steps for rank in ranks),
        num_preempted=sum(rank.num_preempted for rank in ranks),
        busy_s=sum(rank.busy_s for rank in ranks),
    )
