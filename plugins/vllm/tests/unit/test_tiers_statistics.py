"""What the processes of one vLLM say of their tiers, put together."""

from __future__ import annotations

import msgspec

from dynamo_sdk.interfaces import KVStoreStatistics, KVTiersStatistics, KVTierStatistics
from dynamo_sdk.kv import TierRun
from dynamo_sdk.types import KVTier
from dynamo_sdk_vllm.tiers.held import HeldBlocks, Lookups
from dynamo_sdk_vllm.tiers.messages import TierChange
from dynamo_sdk_vllm.tiers.statistics import merged, of_scheduler, of_worker, total

KEYS = tuple(bytes([number]) * 16 for number in range(6))


def worker(num_blocks: int, *, capacity_bytes: int | None = 100) -> KVTiersStatistics:
    store = KVStoreStatistics(
        num_blocks=num_blocks, used_bytes=10 * num_blocks, capacity_bytes=capacity_bytes
    )
    tier = KVTierStatistics(
        name="ram", tier=KVTier.HOST, store=store, onboard_s=0.5, num_refused_blocks={"rare": num_blocks}
    )
    return KVTiersStatistics(tiers=(tier,))


def test_each_run_is_in_the_fastest_tier_that_has_its_first_block():
    held, lookups = HeldBlocks(["ram", "disk"], 1), Lookups()
    held.change(0, TierChange(0, True, (KEYS[0], KEYS[3])))
    held.change(0, TierChange(1, True, KEYS[1:5]))
    assert held.runs(KEYS, lookups) == [
        TierRun(tier="ram", num_blocks=1),
        TierRun(tier="disk", num_blocks=4),
    ]
    assert lookups.num_asked == {"ram": 6, "disk": 5}
    assert lookups.num_hits == {"ram": 1, "disk": 4}
    held.change(0, TierChange(0, False, (KEYS[0],)))
    assert held.runs(KEYS) == []


def test_parts_of_workers_add_up_and_later_words_count():
    lookups = Lookups()
    lookups.num_asked["ram"], lookups.num_hits["ram"] = 9, 4
    said = merged(of_worker("0", worker(1)), of_worker("1", worker(2)))
    said = merged(said, of_worker("0", worker(5)))
    said = merged(said, of_scheduler(lookups, 64, {"load": 3, "nothing": 7}))
    other_rank = merged(of_worker("0", worker(3)), of_scheduler(lookups, 32, {"load": 1, "recompute": 1}))
    everything = total([msgspec.msgpack.decode(msgspec.msgpack.encode(each)) for each in (said, other_rank)])
    (ram,) = everything.tiers
    assert ram.store == KVStoreStatistics(num_blocks=10, used_bytes=100, capacity_bytes=300)
    assert (ram.num_lookup_blocks, ram.num_hit_blocks, ram.onboard_s) == (18, 8, 1.5)
    assert ram.num_refused_blocks == {"rare": 10}
    assert everything.num_matched_tokens == 96
    assert everything.num_decisions == {"load": 4, "recompute": 1}


def test_a_tier_without_a_capacity_has_none_in_sum():
    said = merged(of_worker("0", worker(1)), of_worker("1", worker(1, capacity_bytes=None)))
    assert total([said]).tiers[0].store.capacity_bytes is None
    assert total([]) == KVTiersStatistics(tiers=())
