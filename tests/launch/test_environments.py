from __future__ import annotations

from dynamo_sdk.launch.environments import even_share, replica_environment
from dynamo_sdk.types.plan import DeploymentPlan, HostInventory, PluginChoice, ReplicaPlan, ServicePlan

ENGINE = PluginChoice(name="torch")
HOST = HostInventory(name="here", num_cpus=16)


def service(name: str, num: int, *, cpus: int | None = None, has_engine: bool = True) -> ServicePlan:
    return ServicePlan(
        name=name,
        factory="",
        replicas=tuple(ReplicaPlan(index=index, host="here", gpu_ids=(str(index),)) for index in range(num)),
        cpus_per_replica=cpus,
        engine=ENGINE if has_engine else None,
    )


def test_engines_share_what_is_left_evenly() -> None:
    services = (
        service("A", 2, cpus=4),
        service("B", 3),
        service("C", 1),
        service("Api", 1, has_engine=False),
    )
    plan = DeploymentPlan(target="", services=services, models=())
    assert even_share(plan, HOST) == (16 - 8) // 4
    assert even_share(plan, HostInventory(name="here", num_cpus=2)) == 1
    assert even_share(plan, HostInventory(name="elsewhere", num_cpus=6)) == 6


def test_a_replica_sees_its_own_devices_and_threads() -> None:
    mine = service("A", 2)
    environment = replica_environment(mine, mine.replicas[1], even_share=3, inherited={"PATH": "/bin"})
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"
    assert environment["PATH"] == "/bin"


def test_a_replica_without_gpus_sees_none_and_one_without_engine_gets_one_thread() -> None:
    api = ServicePlan(name="Api", factory="", replicas=(ReplicaPlan(index=0, host="here"),))
    environment = replica_environment(api, api.replicas[0], even_share=3, inherited={})
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_what_the_user_set_wins_unless_the_deploy_file_says_otherwise() -> None:
    inherited = {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "4,5", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    free, fixed = service("A", 1), service("A", 1, cpus=2)
    environment = replica_environment(free, free.replicas[0], even_share=3, inherited=inherited)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["MKL_NUM_THREADS"] == "3"
    assert environment["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"  # in which the user counted
    environment = replica_environment(fixed, fixed.replicas[0], even_share=3, inherited=inherited)
    assert environment["OMP_NUM_THREADS"] == "2"
