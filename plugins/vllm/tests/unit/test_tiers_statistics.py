"""What the processes of one vLLM say of their tiers, put together."""

from __future__ import annotations

import msgspec

from dynamo_sdk.interfaces import (
    KVSharingStatistics,
    KVStoreStatistics,
    KVTierCounts,
    KVTiersStatistics,
    KVTierStatistics,
)
from dynamo_sdk.kv import TierRun
from dynamo_sdk.types import KVTier
from dynamo_sdk_vllm.tiers.held import HeldBlocks, Lookups
from dynamo_sdk_vllm.tiers.messages import TierChange
from dynamo_sdk_vllm.tiers.statistics import merged, of_scheduler, of_worker, sharing_of, total

KEYS = tuple(bytes([number]) * 16 for number in range(6))


def worker(num_blocks: int, *, capacity_bytes: int | None = 100) -> KVTiersStatistics:
    store = KVStoreStatistics(
        num_blocks=num_blocks, used_bytes=10 * num_blocks, capacity_bytes=capacity_bytes
    )
    tier = KVTierStatistics(
        name="ram",
        tier=KVTier.HOST,
        store=store,
        counts=KVTierCounts(onboard_s=0.5),
        num_refused_blocks={"rare": num_blocks},
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


def test_what_another_worker_is_said_to_have_is_in_reach():
    held, lookups = HeldBlocks(["ram", "shared", "disk"], 1), Lookups()
    held.change(0, TierChange(0, True, KEYS[:2]))
    held.change(0, TierChange(2, True, KEYS[:6]))
    assert held.runs(KEYS, num_at_peer=4) == held.runs(KEYS), "no tier reads other workers"
    held.follow_hints([1])
    assert held.runs(KEYS, lookups, num_at_peer=4) == [
        TierRun(tier="ram", num_blocks=2),
        TierRun(tier="shared", num_blocks=2),
        TierRun(tier="disk", num_blocks=2),
    ]
    assert lookups.num_hits == {"ram": 2, "shared": 2, "disk": 2}
    assert held.runs(KEYS, num_at_peer=99)[1].num_blocks == 4
    assert held.runs(KEYS, num_at_peer=0) == held.runs(KEYS, num_at_peer=-3)
    assert not HeldBlocks(["shared"], 1).has(KEYS[0])


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
    assert (ram.counts.num_lookup_blocks, ram.counts.num_hit_blocks, ram.counts.onboard_s) == (18, 8, 1.5)
    assert ram.num_refused_blocks == {"rare": 10}
    assert everything.num_matched_tokens == 96
    assert everything.num_decisions == {"load": 4, "recompute": 1}


def test_what_others_read_is_said_when_it_has_changed():
    assert sharing_of([]) == sharing_of([of_worker("0", worker(1))]) == KVSharingStatistics()
    said = merged(of_worker("0", worker(1)), of_worker("0", None, KVSharingStatistics(num_blocks=2)))
    said = merged(said, of_worker("0", worker(4), KVSharingStatistics(num_blocks=3)))
    said = merged(said, of_worker("0", worker(5)))
    said = msgspec.msgpack.decode(msgspec.msgpack.encode(said))
    assert sharing_of([said]).num_blocks == 3
    said = merged(said, of_worker("1", None, KVSharingStatistics(num_blocks=4, num_refused=1)))
    assert sharing_of([said]) == KVSharingStatistics(num_blocks=7, num_refused=1)
    assert total([said]).tiers[0].store.num_blocks == 5
    assert of_worker("0", None) == {}


def test_a_tier_without_a_capacity_has_none_in_sum():
    said = merged(of_worker("0", worker(1)), of_worker("1", worker(1, capacity_bytes=None)))
    assert total([said]).tiers[0].store.capacity_bytes is None
    assert total([]) == KVTiersStatistics(tiers=())
