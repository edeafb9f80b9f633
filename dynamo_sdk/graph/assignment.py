"""Which replica gets which GPUs of which host.

First fit, the replicas with most GPUs first, so that small ones fill the gaps. A replica's GPUs are on
one host; no GPU is given twice. Replicas without GPUs go to the first host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.types.plan import Inventory, ReplicaPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one service asks for: so many replicas, with so many GPUs each."""

    service: str
    num_replicas: int
    gpus_per_replica: int


def assign_replicas(demands: Sequence[Demand], inventory: Inventory) -> dict[str, tuple[ReplicaPlan, ...]]:
    """Service -> its replicas, in order. Raises ``ConfigError`` when the inventory cannot hold them."""
    if not inventory.hosts:
        raise ConfigError("the inventory has no host; the launcher must offer at least one")
    free = {host.name: [gpu.id for gpu in host.gpus] for host in inventory.hosts}
    placed: dict[str, list[ReplicaPlan]] = {demand.service: [] for demand in demands}
    for demand in sorted(demands, key=lambda demand: -demand.gpus_per_replica):
        count = demand.gpus_per_replica
        for index in range(demand.num_replicas):
            host = next((name for name, gpus in free.items() if len(gpus) >= count), None)
            if host is None:
                raise ConfigError(_explain(demand, demands, inventory))
            gpu_ids, free[host] = tuple(free[host][:count]), free[host][count:]
            placed[demand.service].append(ReplicaPlan(index=index, host=host, gpu_ids=gpu_ids))
    return {service: tuple(replicas) for service, replicas in placed.items()}


def _explain(unplaced: Demand, demands: Sequence[Demand], inventory: Inventory) -> str:
    num_needed = sum(demand.num_replicas * demand.gpus_per_replica for demand in demands)
    num_there = sum(len(host.gpus) for host in inventory.hosts)
    hosts = ", ".join(f"{host.name}: {len(host.gpus)}" for host in inventory.hosts)
    wishes = ", ".join(
        f"{demand.service} {demand.num_replicas} x {demand.gpus_per_replica}"
        for demand in demands
        if demand.gpus_per_replica and demand.num_replicas
    )
    name = unplaced.service
    if num_needed > num_there:
        return (
            f"the services need {num_needed} GPUs ({wishes}), the inventory has {num_there} ({hosts}); "
            f"lower services.{name}.gpus or services.{name}.replicas, or add hosts"
        )
    return (
        f"{name} needs {unplaced.gpus_per_replica} GPUs on one host for each replica, and no host has "
        f"so many left ({wishes}; inventory {hosts}); lower services.{name}.gpus or services.{name}.replicas"
    )
