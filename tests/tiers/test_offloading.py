"""What comes down to a tier is what was there under its key, whatever happens while it is copied."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import CachedBlock, CachedPlace, OffloadQueue, TierContents
from dynamo_sdk.stores import RamStore, RamStoreConfig
from dynamo_sdk.tiers.offloading import Offloader
from dynamo_sdk.tiers.staging import Staging
from dynamo_sdk.tiers.tier import Tier
from dynamo_sdk.transfer import HostBlockMemory
from dynamo_sdk.types import KVLayout, KVTier
from tests.stores.conftest import BLOCK_BYTES, NUM_BLOCKS, block, key

pytestmark = pytest.mark.anyio


class Device(HostBlockMemory):
    """Block ``i`` of the pool holds ``block(i)`` under ``key(i)``, until it is given to somebody else.
    ``lost_meanwhile`` are, while blocks are read."""

    num_blocks = NUM_BLOCKS

    def __init__(self) -> None:
        super().__init__(KVLayout(fingerprint="test", block_size=4, block_bytes=BLOCK_BYTES), NUM_BLOCKS)
        self.lost_meanwhile: set[int] = set()
        self.contents: dict[CacheKey, CachedPlace] = {}
        for number in range(NUM_BLOCKS):
            parent = key(number - 1) if number else None
            content = CachedBlock(key(number), parent, b"", None, None)
            self.contents[key(number)] = CachedPlace(number, content)
            self.write([number], memoryview(block(number)))

    def give_away(self, number: int) -> None:
        """Evicted, and overwritten at once."""
        del self.contents[key(number)]
        self.write([number], memoryview(b"x" * BLOCK_BYTES))

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        for number in self.lost_meanwhile:
            self.give_away(number)
        super().read(block_ids, into)

    def place_of(self, wanted: CacheKey) -> CachedPlace | None:
        return self.contents.get(wanted)

    def is_unchanged(self, place: CachedPlace) -> bool:
        return self.contents.get(place.content.key) is place


class TwoTiers:
    def __init__(self, device: Device) -> None:
        self.contents = TierContents([KVTier.HOST, KVTier.DISK], 4, lambda _: False)
        self.upper, self.lower = (self._tier(number) for number in range(2))
        self.staging = Staging(BLOCK_BYTES, 1)
        self.threads = ThreadPoolExecutor(1)
        self.offloader = Offloader(
            self.lower, [self.upper], device, device, self.contents, self.staging, self.threads
        )

    def _tier(self, number: int) -> Tier:
        store = RamStore(RamStoreConfig(block_bytes=BLOCK_BYTES, capacity_bytes=NUM_BLOCKS * BLOCK_BYTES))
        queue = OffloadQueue([], 100)
        return Tier(number, f"{number}", KVTier.HOST, store, queue, self.contents, lambda: None)

    async def start(self) -> None:
        self.staging.open()
        for tier in (self.upper, self.lower):
            await tier.store.start()

    async def close(self) -> None:
        for tier in (self.upper, self.lower):
            await tier.store.close()
        self.threads.shutdown()


@pytest.mark.parametrize("gone", [{1}, {0, 3}, {0, 1, 2}])
@pytest.mark.parametrize("above", [set(), {1}, {0, 1, 4, 5}])
async def test_a_block_that_is_given_away_while_it_is_copied(gone: set[int], above: set[int]) -> None:
    """Those above are brought down from there; the others stay what they are."""
    device = Device()
    device.lost_meanwhile = gone
    device.give_away(5)
    tiers = TwoTiers(device)
    await tiers.start()
    for number in above:
        await tiers.upper.store.put(key(number), block(number))
    blocks = [
        CachedBlock(key(number), key(number - 1) if number else None, b"", None, None)
        for number in range(NUM_BLOCKS)
    ]
    await tiers.offloader._bring_down(blocks)
    for number in range(NUM_BLOCKS):
        is_there = number in above or number not in {*gone, 5}
        assert await tiers.lower.store.get(key(number)) == (block(number) if is_there else None)
    await tiers.close()
