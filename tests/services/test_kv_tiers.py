"""A worker's tiers: what its engine is started with, and what its metrics say."""

from __future__ import annotations

from pathlib import Path

from dynamo_sdk.interfaces import KVStoreStatistics, KVTierCounts, KVTiersStatistics, KVTierStatistics
from dynamo_sdk.metrics import WorkerMetrics
from dynamo_sdk.plugins import Registry
from dynamo_sdk.services.kv_tiers import observe_tiers, tier_setups
from dynamo_sdk.stores import DiskStore, RamStore
from dynamo_sdk.types import KVTier
from dynamo_sdk.types.plan import KVTierPlan

RAM = KVTierPlan(name="ram", kind="ram", capacity_bytes=4096, args={"capacity_bytes": 4096})


def test_a_store_is_built_for_the_engines_blocks() -> None:
    (ram,) = tier_setups([RAM], Registry.of(), "Decode-0")
    assert (ram.name, ram.tier, ram.plan) == ("ram", KVTier.HOST, RAM)
    store = ram.build(1024)
    assert isinstance(store, RamStore)
    assert store.statistics().capacity_bytes == 4096


def test_workers_do_not_share_a_folder(tmp_path: Path) -> None:
    plan = KVTierPlan(
        name="disk",
        kind="disk",
        capacity_bytes=1 << 20,
        args={"capacity_bytes": 1 << 20, "path": str(tmp_path)},
    )
    (disk,) = tier_setups([plan], Registry.of(), "Decode-1")
    assert disk.tier is KVTier.DISK
    assert disk.plan.args["path"] == str(tmp_path / "Decode-1")
    assert isinstance(disk.build(4096), DiskStore)
    assert plan.args["path"] == str(tmp_path)


def _statistics(num_hits: int) -> KVTiersStatistics:
    tiers = [
        KVTierStatistics(
            name=name,
            tier=tier,
            store=KVStoreStatistics(num_blocks=3, used_bytes=300, capacity_bytes=capacity, num_evicted=2),
            counts=KVTierCounts(
                num_lookup_blocks=10,
                num_hit_blocks=num_hits,
                num_onboarded_blocks=4,
                num_offloaded_blocks_from_device=5,
                num_offloaded_blocks_from_tiers=1,
                num_failures=9,
            ),
            num_dropped_blocks=7,
            num_refused_blocks={"rare": 8},
        )
        for name, tier, capacity in (("ram", KVTier.HOST, 1000), ("s3", KVTier.REMOTE, None))
    ]
    return KVTiersStatistics(tiers=tuple(tiers), num_matched_tokens=64, num_decisions={"recompute": 2})


def test_totals_become_series() -> None:
    metrics = WorkerMetrics(service="Decode", worker_id="w", role="decode")
    observe_tiers(metrics.tiers, _statistics(3))
    observe_tiers(metrics.tiers, _statistics(6))
    lines = metrics.render().decode().splitlines()
    worker = 'role="decode",service="Decode"'
    for line in (
        f'kvbm_hit_blocks_total{{{worker},tier="ram",worker_id="w"}} 6.0',
        f'kvbm_lookup_blocks_total{{{worker},tier="s3",worker_id="w"}} 10.0',
        f'kvbm_offloaded_blocks_total{{{worker},tier="ram",worker_id="w"}} 6.0',
        f'kvbm_skipped_blocks_total{{reason="rare",{worker},tier="ram",worker_id="w"}} 8.0',
        f'kvbm_skipped_blocks_total{{reason="dropped",{worker},tier="ram",worker_id="w"}} 7.0',
        f'kvbm_capacity_bytes{{{worker},tier="ram",worker_id="w"}} 1000.0',
        f'kvbm_onboard_decisions_total{{decision="recompute",{worker},worker_id="w"}} 2.0',
        f'kvbm_offload_blocks_d2h{{{worker},worker_id="w"}} 5.0',
        f'kvbm_onboard_blocks_h2d{{{worker},worker_id="w"}} 4.0',
        f'kvbm_matched_tokens{{{worker},worker_id="w"}} 64.0',
    ):
        assert _in_some_order(line, lines), line
    assert not any(line.startswith("kvbm_capacity_bytes") and 'tier="s3"' in line for line in lines)


def _in_some_order(line: str, lines: list[str]) -> bool:
    """Labels may come in any order."""

    def parts(text: str) -> tuple[str, frozenset[str]]:
        name, _, rest = text.partition("{")
        labels, _, value = rest.partition("}")
        return f"{name} {value.strip()}", frozenset(labels.split(","))

    return parts(line) in {parts(each) for each in lines if "{" in each}


def test_without_tiers_there_are_no_series() -> None:
    metrics = WorkerMetrics(service="Decode", worker_id="w", role="decode")
    observe_tiers(metrics.tiers, KVTiersStatistics(tiers=()))
    assert not any(line.startswith("kvbm_") for line in metrics.render().decode().splitlines())
