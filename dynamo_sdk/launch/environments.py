"""A replica's environment: the GPUs and the threads that it may use, said in the words libraries read."""

from __future__ import annotations

from collections.abc import Mapping

from dynamo_sdk.types.plan import DeploymentPlan, HostInventory, ReplicaPlan, ServicePlan

from .gpus import VISIBLE_DEVICES

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
DEVICE_ORDER = "CUDA_DEVICE_ORDER"


def replica_environment(
    service: ServicePlan, replica: ReplicaPlan, *, even_share: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """``inherited`` with the replica's own devices and thread counts.

    A replica without GPUs sees none: a library that grabs the first device it finds must not take one
    that belongs to another. ``cpus`` of the deploy file wins over an inherited thread count, and that
    over the even share.
    """
    environment = dict(inherited)
    if VISIBLE_DEVICES not in inherited:
        environment[DEVICE_ORDER] = "PCI_BUS_ID"  # the order in which the inventory counted
    environment[VISIBLE_DEVICES] = ",".join(replica.gpu_ids)
    for name in THREAD_VARIABLES:
        if service.cpus_per_replica is not None:
            environment[name] = str(service.cpus_per_replica)
        else:
            environment.setdefault(name, str(even_share if service.engine is not None else 1))
    # Threads that spin while they wait take the cores from the other replicas of this host.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    has_threads = environment["RAYON_NUM_THREADS"] != "1"
    environment.setdefault("TOKENIZERS_PARALLELISM", "true" if has_threads else "false")
    environment["PYTHONUNBUFFERED"] = "1"  # a log line must not wait for the next one
    return environment


def even_share(plan: DeploymentPlan, host: HostInventory) -> int:
    """Threads for each replica on ``host`` that has an engine and no ``cpus`` of its own; at least one."""
    num_sharing, num_reserved = 0, 0
    for service in plan.services:
        num_here = sum(replica.host == host.name for replica in service.replicas)
        if service.cpus_per_replica is not None:
            num_reserved += num_here * service.cpus_per_replica
        elif service.engine is not None:
            num_sharing += num_here
    return max(1, (host.num_cpus - num_reserved) // max(1, num_sharing))
