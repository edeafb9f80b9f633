"""What the tiers are asked for, and how it is counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from dynamo_sdk.kv import OffloadQueue, OnboardingPolicy, TierContents
from dynamo_sdk.testing import MemoryKVStore
from dynamo_sdk.tiers.onboarding import Onboarder
from dynamo_sdk.tiers.staging import Staging
from dynamo_sdk.tiers.tier import Tier
from dynamo_sdk.transfer import HostBlockMemory
from dynamo_sdk.types import KVLayout, KVTier
from tests.stores.conftest import BLOCK_BYTES, block, key

pytestmark = pytest.mark.anyio


async def test_a_block_is_asked_of_a_tier_once_and_where_faster_ones_lack_it() -> None:
    contents = TierContents([KVTier.HOST, KVTier.DISK], 4, lambda _: False)
    tiers = [
        Tier(number, name, KVTier.HOST, MemoryKVStore(), OffloadQueue([], 1), contents, lambda: None)
        for number, name in enumerate(("ram", "disk"))
    ]
    for tier, numbers in zip(tiers, [(0, 1, 2, 5, 6), range(5)], strict=True):
        for number in numbers:
            await tier.store.put(key(number), block(number))
    memory = HostBlockMemory(KVLayout(fingerprint="test", block_size=4, block_bytes=BLOCK_BYTES), 1)
    policy = OnboardingPolicy(block_size=4, block_bytes=BLOCK_BYTES)
    with ThreadPoolExecutor(1) as threads:
        onboarder = Onboarder(tiers, policy, memory, Staging(BLOCK_BYTES, 1), threads)
        runs = await onboarder.find([key(number) for number in range(9)], is_counted=True)
        await onboarder.find([key(number) for number in range(9)], is_counted=False)
    assert [(run.tier.name, run.num_blocks) for run in runs] == [("ram", 3), ("disk", 2), ("ram", 2)]
    counts = [(tier.counts.num_hit_blocks, tier.counts.num_lookup_blocks) for tier in tiers]
    assert counts == [(5, 9), (2, 4)]
