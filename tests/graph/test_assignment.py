"""GPUs are given once, each replica's on one host, or the plan is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.assignment import Demand, assign_replicas
from dynamo_sdk.types.plan import GpuDevice, HostInventory, Inventory


def _inventory(*num_gpus: int) -> Inventory:
    return Inventory(
        hosts=tuple(
            HostInventory(
                name=f"h{host}", num_cpus=8, gpus=tuple(GpuDevice(id=str(gpu)) for gpu in range(count))
            )
            for host, count in enumerate(num_gpus)
        )
    )


def _demand(service: str, num_replicas: int, gpus: int) -> Demand:
    return Demand(service=service, num_replicas=num_replicas, gpus_per_replica=gpus)


def test_replicas_get_gpus_in_order() -> None:
    placed = assign_replicas([_demand("P", 2, 1), _demand("D", 1, 2)], _inventory(4))
    assert [replica.gpu_ids for replica in placed["D"]] == [("0", "1")]
    assert [replica.gpu_ids for replica in placed["P"]] == [("2",), ("3",)]
    assert [replica.index for replica in placed["P"]] == [0, 1]


def test_equal_wishes_are_served_in_start_order() -> None:
    placed = assign_replicas([_demand("P", 1, 1), _demand("D", 1, 1)], _inventory(2))
    assert (placed["P"][0].gpu_ids, placed["D"][0].gpu_ids) == (("0",), ("1",))


def test_large_replicas_go_first_so_that_small_ones_fill_the_gaps() -> None:
    placed = assign_replicas([_demand("Small", 1, 1), _demand("Large", 1, 3)], _inventory(3, 1))
    assert (placed["Large"][0].host, placed["Small"][0].host) == ("h0", "h1")


def test_replicas_without_gpus_are_on_the_first_host() -> None:
    placed = assign_replicas([_demand("Api", 2, 0), _demand("None", 0, 4)], _inventory(0, 4))
    assert [replica.host for replica in placed["Api"]] == ["h0", "h0"]
    assert placed["None"] == ()


def test_too_many_gpus_name_who_wants_what_and_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        assign_replicas([_demand("P", 2, 1), _demand("D", 1, 2), _demand("Api", 1, 0)], _inventory(1, 2))
    assert caught.value.message == (
        "the services need 4 GPUs (P 2 x 1, D 1 x 2), the inventory has 3 (h0: 1, h1: 2); "
        "lower services.P.gpus or services.P.replicas, or add hosts"
    )


def test_gpus_on_different_hosts_are_not_joined() -> None:
    with pytest.raises(ConfigError, match="D needs 2 GPUs on one host for each replica, and no host has"):
        assign_replicas([_demand("D", 1, 2)], _inventory(1, 1))


def test_an_empty_inventory_is_refused() -> None:
    with pytest.raises(ConfigError, match="no host"):
        assign_replicas([], Inventory(hosts=()))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_no_gpu_is_given_twice_and_every_wish_is_met_or_refused(
    wishes: list[tuple[int, int]], num_gpus: list[int]
) -> None:
    demands = [_demand(f"S{index}", *wish) for index, wish in enumerate(wishes)]
    inventory = _inventory(*num_gpus)
    num_needed = sum(replicas * gpus for replicas, gpus in wishes)
    try:
        placed = assign_replicas(demands, inventory)
    except ConfigError:
        # one host is a plain budget; several may be cut up so that the rest fits nowhere
        assert len(num_gpus) > 1 or num_needed > sum(num_gpus)
        return
    there = {(host.name, gpu.id) for host in inventory.hosts for gpu in host.gpus}
    given_out: list[tuple[str, str]] = []
    for demand in demands:
        replicas = placed[demand.service]
        assert [replica.index for replica in replicas] == list(range(demand.num_replicas))
        for replica in replicas:
            assert len(replica.gpu_ids) == demand.gpus_per_replica
            given_out += [(replica.host, gpu) for gpu in replica.gpu_ids]
    assert len(given_out) == len(set(given_out)) == num_needed
    assert set(given_out) <= there
