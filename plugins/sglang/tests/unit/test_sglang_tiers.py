"""Tiers of the deploy file as SGLang's arguments, and a store of ours as its storage backend."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from conftest import HERE

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import EngineSetup, KVTierSetup
from dynamo_sdk.plugins import Registry
from dynamo_sdk.services.kv_tiers import tier_setups
from dynamo_sdk.types import LoraSpec, ModelSpec, Role
from dynamo_sdk.types.plan import DeploymentPlan, KVTierPlan, ModelPlan, PluginChoice, ServicePlan
from dynamo_sdk_sglang import plugin, store_thread
from dynamo_sdk_sglang.tiers import kv_identity, tier_arguments

RAM = KVTierPlan(name="ram", kind="ram", capacity_bytes=3_000_000, args={"capacity_bytes": 3_000_000})
FLOATS = 256


def disk(folder: Path) -> KVTierPlan:
    args = {"capacity_bytes": 1 << 20, "path": str(folder)}
    return KVTierPlan(name="disk", kind="disk", capacity_bytes=1 << 20, args=args, min_uses=2)


def setups(*plans: KVTierPlan) -> tuple[KVTierSetup, ...]:
    return tier_setups(plans, Registry.of(), "Whole-0")


def test_ram_is_sglangs_own_and_what_is_below_a_store(tmp_path: Path):
    assert tier_arguments((), "") == {}
    arguments = tier_arguments(setups(RAM, disk(tmp_path)), "i")
    assert arguments["hicache_size"] == 0.003
    assert arguments["hicache_write_policy"] == "write_through"
    backend = json.loads(arguments["hicache_storage_backend_extra_config"])
    assert backend["kind"] == "disk"
    assert backend["args"]["path"] == str(tmp_path / "Whole-0")
    assert "hicache_storage_backend" not in tier_arguments(setups(RAM), "")


def test_what_sglang_cannot_do_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="one tier in RAM"):
        tier_arguments(setups(disk(tmp_path)), "")
    with pytest.raises(ConfigError, match="one tier in RAM"):
        tier_arguments(setups(RAM, RAM), "")
    with pytest.raises(ConfigError, match="priorities"):
        tier_arguments(setups(msgspec.structs.replace(RAM, min_priority=1)), "")


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ("ram disk", None),
        ("ram", None),
        ("", None),
        ("ram shared", "reads no blocks of other workers"),
        ("disk", "takes one tier in RAM"),
        ("ram ram", "takes one tier in RAM"),
        ("ram disk s3", "at most one more below it; it has ram, disk, s3"),
    ],
)
def test_what_sglang_cannot_do_is_refused_by_the_plan(kinds: str, words: str | None):
    tiers = tuple(KVTierPlan(name=f"{n}", kind=kind) for n, kind in enumerate(kinds.split()))
    said = objections(tiers)
    assert (said == []) if words is None else (len(said) == 1 and words in said[0])
    assert objections(tiers, role=Role.DECODE) == []


def test_priorities_are_refused_by_the_plan():
    (said,) = objections((msgspec.structs.replace(RAM, min_priority=1),))
    assert said == "kv.tiers: engine 'sglang' of service Worker knows no priorities; remove min_priority"


def objections(tiers: tuple[KVTierPlan, ...], role: Role = Role.AGGREGATED) -> list[str]:
    engine, router = PluginChoice(name="sglang"), PluginChoice(name="kv")
    service = ServicePlan(name="Worker", factory="m:Worker", engine=engine, model="m", role=role)
    model = ModelPlan(spec=ModelSpec(name="m", path="m"), router=router, kv_tiers=tiers)
    plan = DeploymentPlan(target="graph.py", services=(service,), models=(model,))
    return [objection.message for objection in Registry.of(plugin).check_plan(plan)]


class HostPool:
    """SGLang's host memory: pages of bfloat16, flat."""

    layout = "layer_first"

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(FLOATS, dtype=torch.bfloat16)


@pytest.fixture
def hicache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(HERE / "fake_sglang"))
    yield importlib.import_module("dynamo_sdk_sglang.hicache")
    for name in [name for name in sys.modules if name.startswith(("sglang", "dynamo_sdk_sglang.hicache"))]:
        del sys.modules[name]


def backend_of(
    hicache: Any, folder: Path, *, identity: str = "i", pool: HostPool | None = None, **config: Any
) -> Any:
    arguments = tier_arguments(setups(RAM, disk(folder)), identity)
    extra = json.loads(arguments["hicache_storage_backend_extra_config"])
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
    backend.register_mem_pool_host(pool or HostPool())
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


def test_ranks_models_weights_and_layouts_have_pages_of_their_own(hicache: Any, tmp_path: Path):
    name = "a" * 64
    page_first = HostPool()
    page_first.layout = "page_first"
    configs: list[dict[str, Any]] = [
        {},
        {"model_name": "other"},
        {"tp_rank": 1, "tp_size": 2},
        {"attn_cp_rank": 1},
        {"identity": "other weights"},
        {"pool": page_first},
    ]
    backends = [
        backend_of(hicache, tmp_path / str(number), **config) for number, config in enumerate(configs)
    ]
    try:
        assert len({backend._names([name])[0] for backend in backends}) == len(configs)
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


def test_a_call_that_takes_too_long_has_ended_when_it_is_given_up(
    hicache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SGLang uses the page for something else at once: what is written later is that, under the old name."""
    backend = backend_of(hicache, tmp_path)
    page_of, has_ended = page(1), threading.Event()

    async def put_slowly(offers: Any) -> list[bool]:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # a thread that still copies
            has_ended.set()
        return [True]

    monkeypatch.setattr(store_thread, "CALL_TIMEOUT_S", 0.01)
    try:
        backend._store.put_many = put_slowly
        assert backend.batch_set(["a"], [page_of])
        assert has_ended.is_set()
    finally:
        monkeypatch.undo()
        backend.close()


def test_a_store_that_never_returns_holds_nobody_and_no_page(
    hicache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """SGLang's memory is used for something else at once, whatever the store still does."""
    backend = backend_of(hicache, tmp_path)
    put_many, wakes, has_returned = backend._store.put_many, asyncio.Event(), threading.Event()
    pool = torch.stack([page(1), page(2)])

    async def hang(offers: Any) -> list[bool]:
        while not wakes.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await wakes.wait()
        return await put_many(offers)

    monkeypatch.setattr(store_thread, "CALL_TIMEOUT_S", 0.01)
    monkeypatch.setattr(store_thread, "ENDING_TIMEOUT_S", 0.01)
    try:
        backend._store.put_many = hang
        assert backend.batch_set(["a"], [pool[0]])
        pool[0] = 7
        monkeypatch.undo()
        backend._store.put_many = put_many
        assert backend.batch_set(["b"], [page(3)])
        assert backend.batch_exists(["a"]) == 0
        assert backend.batch_get(["b"], [pool[1]]) == [None]
        assert len(caplog.records) == 1, "one line a minute"
        (call,) = backend._thread._left_behind
        call.add_done_callback(lambda _: has_returned.set())
        backend._thread._loop.call_soon_threadsafe(wakes.set)
        assert has_returned.wait(60)
        assert backend.batch_get(["a"], [pool[1]])[0] is not None
        assert torch.equal(pool, torch.stack([page(7), page(1)]))
        assert not backend.exists("b")
    finally:
        monkeypatch.undo()
        backend.close()


def test_a_sglang_that_mixes_adapters_is_refused(
    hicache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(importlib.import_module("sglang.srt.mem_cache.utils"), "storage_namespace_seed")
    with pytest.raises(ConfigError, match="mix the stored pages"):
        backend_of(hicache, tmp_path)


def test_weights_adapters_and_settings_make_the_identity(tmp_path: Path):
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for folder in (model, adapter):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"one")
    setup = EngineSetup(model=ModelSpec(name="m", path=str(model)), role="aggregated")
    identities = {kv_identity(setup, {}), kv_identity(setup, {"dtype": "float32"})}
    with_adapter = dataclasses.replace(setup, loras=(LoraSpec(name="a", path=str(adapter)),))
    identities.add(kv_identity(with_adapter, {}))
    (adapter / "weights.safetensors").write_bytes(b"two")
    identities.add(kv_identity(with_adapter, {}))
    (model / "weights.safetensors").write_bytes(b"two")
    identities.add(kv_identity(setup, {}))
    assert len(identities) == 5
