"""Tiers of the deploy file as SGLang's arguments, and a store of ours as its storage backend."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from conftest import HERE

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.plugins import Registry
from dynamo_sdk.services.kv_tiers import tier_setups
from dynamo_sdk.types.plan import KVTierPlan
from dynamo_sdk_sglang.tiers import tier_arguments

RAM = KVTierPlan(name="ram", kind="ram", capacity_bytes=3_000_000, args={"capacity_bytes": 3_000_000})
FLOATS = 256


def disk(folder: Path) -> KVTierPlan:
    args = {"capacity_bytes": 1 << 20, "path": str(folder)}
    return KVTierPlan(name="disk", kind="disk", capacity_bytes=1 << 20, args=args, min_uses=2)


def setups(*plans: KVTierPlan) -> tuple[KVTierSetup, ...]:
    return tier_setups(plans, Registry.of(), "Whole-0")


def test_ram_is_sglangs_own_and_what_is_below_a_store(tmp_path: Path):
    assert tier_arguments(()) == {}
    arguments = tier_arguments(setups(RAM, disk(tmp_path)))
    assert arguments["hicache_size"] == 0.003
    assert arguments["hicache_write_policy"] == "write_through"
    backend = json.loads(arguments["hicache_storage_backend_extra_config"])
    assert backend["kind"] == "disk"
    assert backend["args"]["path"] == str(tmp_path / "Whole-0")
    assert "hicache_storage_backend" not in tier_arguments(setups(RAM))


def test_what_sglang_cannot_do_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="one tier in RAM"):
        tier_arguments(setups(disk(tmp_path)))
    with pytest.raises(ConfigError, match="one tier in RAM"):
        tier_arguments(setups(RAM, RAM))
    with pytest.raises(ConfigError, match="priorities"):
        tier_arguments(setups(msgspec.structs.replace(RAM, min_priority=1)))


class HostPool:
    """SGLang's host memory: pages of bfloat16, flat."""

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(FLOATS, dtype=torch.bfloat16)


@pytest.fixture
def hicache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(HERE / "fake_sglang"))
    yield importlib.import_module("dynamo_sdk_sglang.hicache")
    for name in [name for name in sys.modules if name.startswith(("sglang", "dynamo_sdk_sglang.hicache"))]:
        del sys.modules[name]


def backend_of(hicache: Any, folder: Path, **config: Any) -> Any:
    extra = json.loads(tier_arguments(setups(RAM, disk(folder)))["hicache_storage_backend_extra_config"])
    parts = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "dp_rank": 0,
        "model_name": "m",
        **config,
    }
    backend = hicache.StoreBackend(SimpleNamespace(extra_config=extra, **parts), {})
    backend.register_mem_pool_host(HostPool())
    return backend


def page(number: int) -> torch.Tensor:
    return torch.full((FLOATS,), number, dtype=torch.bfloat16)


def test_pages_come_back_as_they_went(hicache: Any, tmp_path: Path):
    backend = backend_of(hicache, tmp_path)
    try:
        names = [f"{number:064x}" for number in range(4)]
        assert backend.batch_exists(names) == 0
        assert backend.batch_set(names[:3], [page(number) for number in range(3)])
        assert backend.batch_exists(names) == 3
        targets = [torch.zeros(FLOATS, dtype=torch.bfloat16) for _ in names]
        found = backend.batch_get(names, targets)
        assert found[3] is None
        assert all(found[number] is targets[number] for number in range(3))
        assert all(torch.equal(found[number], page(number)) for number in range(3))
        assert torch.equal(backend.get(names[2]), page(2))
        assert backend.exists(names[0])
    finally:
        backend.close()


def test_ranks_and_models_have_pages_of_their_own(hicache: Any, tmp_path: Path):
    name = "a" * 64
    backends = [
        backend_of(hicache, tmp_path / str(number), **config)
        for number, config in enumerate([{}, {"model_name": "other"}, {"tp_rank": 1, "tp_size": 2}])
    ]
    try:
        assert len({backend._names([name])[0] for backend in backends}) == 3
    finally:
        for backend in backends:
            backend.close()


def test_a_store_that_breaks_is_a_miss(hicache: Any, tmp_path: Path):
    backend = backend_of(hicache, tmp_path)

    async def fail(*_: object) -> list[bool]:
        raise OSError("gone")

    try:
        backend._store.get_into = backend._store.put_many = backend._store.count_prefix = fail
        assert backend.batch_get(["a"], [page(0)]) == [None]
        assert backend.batch_set(["a"], [page(0)])
        assert backend.batch_exists(["a"]) == 0
    finally:
        backend.close()
