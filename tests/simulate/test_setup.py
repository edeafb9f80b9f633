"""From plans to fleets."""

from __future__ import annotations

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.compile import compile_plan
from dynamo_sdk.graph.deploy import parse_deploy
from dynamo_sdk.simulate import Arrival, FleetSpec, Workload, simulate
from dynamo_sdk.simulate.setup import BOUNDLESS, fleet_specs
from dynamo_sdk.types import Role

from . import services
from .fleets import BUILTINS

MOCKED = (
    "services: {Model: {engine: mocker, replicas: 3, gpus: 2, args: {num_blocks: 77, context_length: 999}}}"
)
HERE = "tests.simulate.services"


def specs(graph: object = services.graph, deploy: str = MOCKED, **how: object) -> list[FleetSpec]:
    plan = compile_plan(
        graph,  # type: ignore[arg-type]
        target="t",
        registry=BUILTINS,
        inventory=BOUNDLESS,
        deploy=parse_deploy(deploy),
    )
    return fleet_specs(plan, BUILTINS, **how)  # type: ignore[arg-type]


def test_a_mocker_runs_as_it_is() -> None:
    (spec,) = specs()
    (pool,) = spec.pools
    assert (pool.service, pool.role, pool.num_replicas, pool.gpus_per_replica) == (
        "Model", Role.AGGREGATED, 3, 2,
    )  # fmt: skip
    assert (pool.config.num_blocks, pool.config.context_length) == (77, 999)
    assert spec.router_name == "round-robin"


def test_another_engine_runs_as_a_mocker_with_what_they_have_in_common() -> None:
    deploy = "services: {Model: {engine: torch, args: {block_size: 32, device: cpu, max_num_seqs: 7}}}"
    (spec,) = specs(deploy=deploy, mocker_args={"num_blocks": 50, "block_size": 8})
    config = spec.pools[0].config
    assert (config.block_size, config.max_num_seqs, config.num_blocks) == (8, 7, 50)


def test_a_hand_over_has_two_pools() -> None:
    deploy = "services: {Prefill: {engine: mocker, replicas: 2}, Decode: {engine: mocker}}"
    (spec,) = specs(services.split, deploy)
    assert spec.is_disaggregated
    assert {pool.role: pool.num_replicas for pool in spec.pools} == {Role.PREFILL: 2, Role.DECODE: 1}
    assert spec.router_name == "least-loaded"


@pytest.mark.parametrize("policy", ["random", f"{HERE}:first", f"{HERE}:Mine"])
def test_policies(policy: str) -> None:
    workload = Workload(
        name="w", arrivals=tuple(Arrival(at_s=n, num_input_tokens=9, num_output_tokens=1) for n in range(6))
    )
    (spec,) = specs(policies=[policy, policy])
    outcome = simulate(workload, spec)
    assert outcome.router == policy
    numbers = sorted(worker.num_requests for worker in outcome.workers)
    assert numbers == {"random": numbers, f"{HERE}:first": [0, 0, 6], f"{HERE}:Mine": [2, 2, 2]}[policy]


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"policies": ["nope"]}, ConfigError, "no router 'nope'"),
        ({"policies": [f"{HERE}:nothing"]}, ConfigError, "is no router"),
        ({"policies": [f"{HERE}:absent"]}, ConfigError, "absent"),
        ({"mocker_args": {"num_blocks": 0}}, ConfigError, "--mocker: num_blocks: should be greater than"),
        ({"mocker_args": {"speed": 1}}, ConfigError, "--mocker: speed: unknown argument"),
        (
            {"mocker_args": {"num_block": 1}},
            ConfigError,
            r"--mocker: num_block: unknown argument; did you mean 'num_blocks'\? \(known: ",
        ),
        ({"model": "other"}, ConfigError, r"no model 'other' \(models: demo\)"),
    ],
)
def test_what_is_wrong_is_named(how: dict[str, object], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        specs(**how)


def test_one_of_several_models_is_named() -> None:
    deploy = """
models: {a: {path: demo}, b: {path: demo, router: random}}
services: {Model: {engine: mocker, model: a}, Other: {engine: mocker, model: b, replicas: 2}}
"""
    with pytest.raises(ConfigError, match=r"several models .* \(models: a, b\)"):
        specs(services.two, deploy)
    (spec,) = specs(services.two, deploy, model="b")
    assert [pool.service for pool in spec.pools] == ["Other"]
    assert spec.router_name == "random"


TIERS = (
    "kv: {tiers: [{kind: ram, capacity: 2GiB, eviction: lfu}, {kind: disk, capacity: 4GiB, path: /none}]}\n"
)


@pytest.mark.parametrize("engine", ["mocker", "torch"])
def test_tiers_are_those_of_the_graph(engine: str) -> None:
    deploy = TIERS + f"services: {{Model: {{engine: {engine}, args: {{block_size: 64}}}}}}"
    (spec,) = specs(deploy=deploy, mocker_args={"num_blocks": 77})
    ram, disk = spec.pools[0].config.tiers
    assert (ram.kind, ram.capacity, ram.eviction, ram.min_uses) == ("ram", 2 << 30, "lfu", 0)
    assert (disk.kind, disk.capacity, disk.eviction, disk.min_uses) == ("disk", 4 << 30, "lru", 2)


def test_tiers_of_one_service_come_before_those_of_the_graph() -> None:
    own = {"tiers": [{"kind": "ram", "capacity": "3GiB"}]}
    (spec,) = specs(deploy=TIERS + MOCKED, mocker_args=own)
    assert [(tier.kind, tier.capacity) for tier in spec.pools[0].config.tiers] == [("ram", 3 << 30)]
