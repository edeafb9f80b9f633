from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import LaunchError
from dynamo_sdk.launch.scaling import scaled
from dynamo_sdk.types.plan import DeploymentPlan, GpuDevice, HostInventory, Inventory, ServicePlan

NAMES = ("A", "B", "C")


@given(
    host_gpus=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    needs=st.tuples(*[st.integers(0, 2)] * 3),
    steps=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5)), max_size=12),
)
def test_no_gpu_is_given_twice_and_who_stays_keeps_theirs(
    host_gpus: list[int], needs: tuple[int, ...], steps: list[tuple[str, int]]
) -> None:
    hosts = tuple(
        HostInventory(
            name=f"host{h}", num_cpus=1, gpus=tuple(GpuDevice(id=f"{h}.{g}") for g in range(num_gpus))
        )
        for h, num_gpus in enumerate(host_gpus)
    )
    plan = DeploymentPlan(
        target="",
        models=(),
        services=tuple(
            ServicePlan(name=name, factory="", gpus_per_replica=need)
            for name, need in zip(NAMES, needs, strict=True)
        ),
    )
    for name, num_replicas in steps:
        before = plan
        try:
            plan = scaled(plan, name, num_replicas, Inventory(hosts=hosts))
        except LaunchError:
            free = [sum(_host_of(gpu) == h for gpu in _free(before, hosts)) for h in range(len(hosts))]
            need = before.service(name).gpus_per_replica
            assert sum(n // need for n in free) < num_replicas - len(before.service(name).replicas)
            continue
        replicas = plan.service(name).replicas
        assert [replica.index for replica in replicas] == list(range(num_replicas))
        kept = min(num_replicas, len(before.service(name).replicas))
        assert replicas[:kept] == before.service(name).replicas[:kept]
        for each in plan.services:
            for replica in each.replicas:
                assert len(replica.gpu_ids) == each.gpus_per_replica
                assert {f"host{_host_of(gpu)}" for gpu in replica.gpu_ids} <= {replica.host}
        used = [gpu for each in plan.services for replica in each.replicas for gpu in replica.gpu_ids]
        assert len(used) == len(set(used))


def _host_of(gpu_id: str) -> int:
    return int(gpu_id.split(".")[0])


def _free(plan: DeploymentPlan, hosts: tuple[HostInventory, ...]) -> set[str]:
    used = {gpu for each in plan.services for replica in each.replicas for gpu in replica.gpu_ids}
    return {gpu.id for host in hosts for gpu in host.gpus} - used


def test_what_cannot_be_says_why() -> None:
    inventory = Inventory(hosts=(HostInventory(name="here", num_cpus=1, gpus=(GpuDevice(id="0"),)),))
    plan = DeploymentPlan(
        target="", models=(), services=(ServicePlan(name="Decode", factory="", gpus_per_replica=2),)
    )
    with pytest.raises(LaunchError, match=r"no room for Decode\.0: it needs 2 GPUs on one host, 1 are free"):
        scaled(plan, "Decode", 1, inventory)
    with pytest.raises(LaunchError, match=r"no service 'Prefill' \(services: Decode\)"):
        scaled(plan, "Prefill", 1, inventory)
    with pytest.raises(LaunchError, match="-1 replicas"):
        scaled(plan, "Decode", -1, inventory)
