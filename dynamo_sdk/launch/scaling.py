"""A plan with another number of replicas: pure, and never more GPUs than there are."""

from __future__ import annotations

import msgspec

from dynamo_sdk.errors import LaunchError
from dynamo_sdk.types.plan import DeploymentPlan, Inventory, ReplicaPlan, ServicePlan


def scaled(plan: DeploymentPlan, service: str, num_replicas: int, inventory: Inventory) -> DeploymentPlan:
    """``plan`` with ``num_replicas`` of ``service``. Replicas that stay keep their index and their GPUs;
    those with the highest index go first. Raises ``LaunchError`` when GPUs or the service are missing."""
    try:
        present = plan.service(service)
    except KeyError:
        known = ", ".join(each.name for each in plan.services)
        raise LaunchError(f"the graph has no service {service!r} (services: {known})") from None
    if num_replicas < 0:
        raise LaunchError(f"{service}: {num_replicas} replicas make no sense; write 0 or more")
    replicas = list(present.replicas[:num_replicas])
    free = _free_gpus(plan, inventory)
    while len(replicas) < num_replicas:
        replicas.append(_place(present, len(replicas), free))
    changed = msgspec.structs.replace(present, replicas=tuple(replicas))
    return msgspec.structs.replace(
        plan, services=tuple(changed if each.name == service else each for each in plan.services)
    )


def _place(service: ServicePlan, index: int, free: dict[str, list[str]]) -> ReplicaPlan:
    """The next replica, on the first host that has room; its GPUs are taken out of ``free``."""
    for host, gpu_ids in free.items():
        if len(gpu_ids) >= service.gpus_per_replica:
            taken = tuple(gpu_ids[: service.gpus_per_replica])
            del gpu_ids[: service.gpus_per_replica]
            return ReplicaPlan(index=index, host=host, gpu_ids=taken)
    num_free = max((len(gpu_ids) for gpu_ids in free.values()), default=0)
    raise LaunchError(
        f"no room for {service.name}.{index}: it needs {service.gpus_per_replica} GPUs on one host, "
        f"{num_free} are free; scale another service down first"
    )


def _free_gpus(plan: DeploymentPlan, inventory: Inventory) -> dict[str, list[str]]:
    used = {
        (replica.host, gpu_id)
        for service in plan.services
        for replica in service.replicas
        for gpu_id in replica.gpu_ids
    }
    return {
        host.name: [gpu.id for gpu in host.gpus if (host.name, gpu.id) not in used]
        for host in inventory.hosts
    }
