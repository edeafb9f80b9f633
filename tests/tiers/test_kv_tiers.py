"""``KVTiers`` beside a device: copies that come too late, tiers that are slow or stuck, and queues."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import (
    BlockMemory,
    BlockOffer,
    CacheKey,
    KVStore,
    KVStoreStatistics,
    KVTierSetup,
)
from dynamo_sdk.kv import BlockPool, OnboardingPolicy, OnboardingReason, cache_keys, cache_root
from dynamo_sdk.stores import DiskStore, DiskStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.tiers import KVTiers
from dynamo_sdk.tiers.onboarding import Onboarder
from dynamo_sdk.types import BlocksStored, KVLayout, KVTier, pack_tokens
from dynamo_sdk.types.plan import KVTierPlan

pytestmark = pytest.mark.anyio

BLOCK_SIZE, NUM_BLOCKS, BLOCK_BYTES = 2, 8, 64
ROOT = cache_root(b"model")
PROMPT = pack_tokens(range(1, 13))  # six blocks
KEYS = cache_keys(PROMPT, BLOCK_SIZE, root=ROOT)


class Memory(BlockMemory):
    """A byte per block, repeated. ``before_read`` and ``before_write`` run on the thread that copies."""

    def __init__(self, model: str) -> None:
        self.blocks = [bytes([block]) * BLOCK_BYTES for block in range(NUM_BLOCKS)]
        self.before_read: Callable[[], object] = lambda: None
        self._layout = KVLayout(fingerprint=model, block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)

    @property
    def layout(self) -> KVLayout:
        return self._layout

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        self.before_read()
        into[:] = b"".join(self.blocks[block] for block in block_ids)

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        for number, block in enumerate(block_ids):
            self.blocks[block] = bytes(data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])


class DictStore(KVStore):
    def __init__(self) -> None:
        self.blocks: dict[CacheKey, bytes] = {}
        self.is_closed = False

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        self.blocks[key] = bytes(block)
        return True

    async def get(self, key: CacheKey) -> bytes | None:
        return self.blocks.get(key)

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return [key in self.blocks for key in keys]

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        for key in keys:
            self.blocks.pop(key, None)

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(num_blocks=len(self.blocks), used_bytes=0)

    async def close(self) -> None:
        self.is_closed = True


class Device:
    """A pool with a prompt in its cache, and tiers below it. ``model``: the layout's fingerprint."""

    def __init__(self, *stores: KVStore, model: str = "fake", may_lack: bool = False, **plan: Any) -> None:
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.pool.record_new_blocks()
        self.memory = Memory(model)
        setups = [
            KVTierSetup(
                name=f"tier-{number}",
                tier=KVTier.HOST,
                plan=KVTierPlan(name=f"tier-{number}", kind="own", **plan),
                build=lambda _, store=store: store,
                may_lack=may_lack,
            )
            for number, store in enumerate(stores)
        ]
        self.tiers = KVTiers(setups, self.pool, self.memory, lambda: None)

    def compute(self, prompt: bytes = PROMPT, *, lora: str | None = None) -> tuple[int, ...]:
        """All blocks of a prompt, cached and held by nobody; which ones."""
        keys = cache_keys(prompt, BLOCK_SIZE, root=ROOT)
        allocation = self.pool.allocate(len(keys))
        assert allocation is not None
        self.pool.register(allocation.block_ids, keys, prompt, after=None, lora=lora)
        self.pool.release(allocation.block_ids)
        return allocation.block_ids


@asynccontextmanager
async def device_with(*stores: KVStore, model: str = "fake", **plan: Any) -> AsyncIterator[Device]:
    device = Device(*stores, model=model, **plan)
    await device.tiers.start()
    try:
        yield device
    finally:
        await device.tiers.close()


async def test_what_was_given_away_while_it_was_copied_is_not_kept() -> None:
    store = DictStore()
    reading, may_read = threading.Event(), threading.Event()
    async with device_with(store) as device:
        blocks = device.compute()
        device.memory.before_read = lambda: (reading.set(), may_read.wait(10))
        device.tiers.offload(device.pool.take_new_blocks())
        await asyncio.to_thread(reading.wait, 10)
        other = device.pool.allocate(4)  # two were free; so the last two of the prompt go
        assert other is not None
        lost = set(other.block_ids) & set(blocks)
        for block in other.block_ids:
            device.memory.blocks[block] = b"\xff" * BLOCK_BYTES
        may_read.set()
        await device.tiers.wait_idle()
        assert len(lost) == 2
        assert list(store.blocks) == KEYS[:4]
        assert all(b"\xff" not in block for block in store.blocks.values())
        (facts,) = device.tiers.statistics().tiers
        assert (facts.counts.num_offloaded_blocks_from_device, facts.counts.num_missed_blocks) == (4, 2)


async def test_what_the_device_lost_before_its_turn_is_counted() -> None:
    store = DictStore()
    async with device_with(store) as device:
        device.compute()
        new = device.pool.take_new_blocks()
        device.pool.reset()
        device.tiers.offload(new)
        await device.tiers.wait_idle()
        assert not store.blocks
        assert device.tiers.statistics().tiers[0].counts.num_missed_blocks == 6


async def test_closing_waits_for_the_copy() -> None:
    store = DictStore()
    reading, may_read = threading.Event(), threading.Event()
    device = Device(store)
    await device.tiers.start()
    device.compute()
    device.memory.before_read = lambda: (reading.set(), may_read.wait(10))
    device.tiers.offload(device.pool.take_new_blocks())
    await asyncio.to_thread(reading.wait, 10)
    closing = asyncio.create_task(device.tiers.close())
    await asyncio.sleep(0)
    assert not store.is_closed
    may_read.set()
    await closing
    assert store.is_closed


async def test_a_store_that_does_not_open_closes_the_others() -> None:
    class Closed(DictStore):
        async def start(self) -> None:
            raise ConfigError("no such disk")

    first = DictStore()
    device = Device(first, Closed())
    with pytest.raises(ConfigError, match="no such disk"):
        await device.tiers.start()
    assert first.is_closed


# -- up


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class SlowStore(DictStore):
    """Reads take their time on ``clock``, the first one ``connect_s`` more; nobody waits for it."""

    def __init__(self, clock: Clock, bytes_per_s: float, connect_s: float) -> None:
        super().__init__()
        self.clock = clock
        self.bytes_per_s = bytes_per_s
        self.connect_s = connect_s

    async def get(self, key: CacheKey) -> bytes | None:
        self.clock.now_s += BLOCK_BYTES / self.bytes_per_s + self.connect_s
        self.connect_s = 0.0
        return await super().get(key)


@pytest.mark.parametrize(
    ("bytes_per_s", "connect_s", "outcome"),
    [
        (1e6, 0.0, OnboardingReason.LOAD),
        (1e6, 1.0, OnboardingReason.LOAD),
        (1e2, 0.0, OnboardingReason.RECOMPUTE),
    ],
)
async def test_a_slow_tier_is_left_alone_and_a_fast_one_used(
    bytes_per_s: float, connect_s: float, outcome: OnboardingReason
) -> None:
    """Computing a token takes a millisecond. A probe finds out what the tier is worth; no request waits."""
    clock = Clock()
    store = SlowStore(clock, bytes_per_s, connect_s)
    async with device_with(store) as device:
        tiers = device.tiers
        policy = OnboardingPolicy(block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)
        policy.computed(0, 12, 0.012, clock.now_s)
        onboarder = Onboarder(tiers.tiers, policy, device.memory, tiers._staging, tiers._threads, clock)
        device.compute()
        tiers.offload(device.pool.take_new_blocks())
        await tiers.wait_idle()
        runs = await onboarder.find(KEYS, is_counted=True)
        assert [run.num_blocks for run in runs] == [6]
        arguments = {"num_device_blocks": 0, "num_tokens": 13, "is_counted": True}
        first = onboarder.decide(runs, KEYS, **arguments)
        assert (first.num_blocks, first.reason) == (0, OnboardingReason.UNMEASURED)
        await onboarder.wait_probes()
        second = onboarder.decide(runs, KEYS, **arguments)
        assert second.reason is outcome
        assert onboarder.num_decisions["unmeasured"] == 1
        if outcome is OnboardingReason.LOAD:
            report = await onboarder.load(runs, KEYS, range(6), limit_s=second.recompute_s)
            assert (report.num_blocks, report.num_bytes) == (6, 6 * BLOCK_BYTES)
            assert report.seconds == pytest.approx(6 * BLOCK_BYTES / bytes_per_s)


class Broken(DictStore):
    async def start(self) -> None:
        raise ConfigError("the folder is a file")


async def test_a_worker_that_has_served_serves_without_a_tier_that_does_not_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, broken = DictStore(), Broken()
    with pytest.raises(ConfigError, match="the folder is a file"):
        await Device(whole, broken).tiers.start()
    assert whole.is_closed
    async with device_with(whole, broken, may_lack=True) as device:
        device.compute()
        device.tiers.offload(device.pool.take_new_blocks())
        await device.tiers.wait_idle()
        runs = await device.tiers.find(KEYS, 0, is_counted=True)
        assert [(run.tier.name, run.num_blocks) for run in runs] == [("tier-0", 6)]
        there, absent = device.tiers.statistics().tiers
        assert (there.store.num_blocks, absent.store.num_blocks, absent.store.capacity_bytes) == (6, 0, 0)
    assert broken.is_closed
    assert not broken.blocks
    assert caplog.text.count("tier tier-1 is left out until the next start: the folder is a file") == 1


class Stuck(DictStore):
    """The fourth block never comes."""

    async def get(self, key: CacheKey) -> bytes | None:
        if key == KEYS[3]:
            await asyncio.Event().wait()
        return await super().get(key)


async def test_a_load_that_takes_longer_than_computing_is_given_up_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamo_sdk.tiers.staging.MAX_BATCH_BLOCKS", 2)
    store = Stuck()
    async with device_with(store) as device:
        tiers = device.tiers
        device.compute()
        tiers.offload(device.pool.take_new_blocks())
        await tiers.wait_idle()
        device.pool.reset()
        tiers.policy.loaded("tier-0", 1, 1e-6, asyncio.get_running_loop().time())
        tiers.policy.computed(0, 12, 1e-3, asyncio.get_running_loop().time())
        runs = await tiers.find(KEYS, 0)
        decision = tiers.decide(runs, KEYS, 0, 13)
        assert decision.num_blocks == 6
        report = await tiers.load(runs, decision, KEYS, range(6), 0)
        assert report.num_blocks == 2, "what had arrived by then is used"
        assert tiers.statistics().tiers[0].counts.num_onboarded_blocks == 2
        assert tiers.decide(runs, KEYS, 0, 13).reason is OnboardingReason.RECOMPUTE


async def test_a_tier_that_does_not_say_what_it_has_has_nothing() -> None:
    class Silent(DictStore):
        async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
            await asyncio.Event().wait()
            return []

    async with device_with(Silent()) as device:
        assert await device.tiers.find(KEYS, 0) == []


async def test_a_full_queue_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_sdk.tiers.kv_tiers.MAX_QUEUED_BYTES", 64 * BLOCK_BYTES)

    class Busy(DictStore):
        def __init__(self) -> None:
            super().__init__()
            self.may_go_on = asyncio.Event()

        async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
            await self.may_go_on.wait()
            return await super().put_many(offers)

    store = Busy()
    async with device_with(store) as device:
        device.compute()
        new = device.pool.take_new_blocks()
        device.tiers.offload(new)
        while len(device.tiers.tiers[0].queue):
            await asyncio.to_thread(lambda: None)
        many = pack_tokens(range(100, 100 + 2 * 70))
        keys = cache_keys(many, BLOCK_SIZE, root=ROOT)
        device.tiers.offload([_like(new[0], key) for key in keys])
        facts = device.tiers.statistics().tiers[0]
        assert (facts.num_queued_blocks, facts.num_dropped_blocks) == (64, 6)
        store.may_go_on.set()
        await device.tiers.wait_idle()
        assert list(store.blocks) == KEYS


@pytest.mark.parametrize(
    ("model", "lora", "num_told"),
    [("fake", None, 6), ("another", None, 0), ("fake", "adapter", 0)],
)
async def test_after_a_restart_only_blocks_that_can_be_loaded_are_told_of(
    tmp_path: Path, model: str, lora: str | None, num_told: int
) -> None:
    """A folder may be another model's, and an adapter's weights others under the same name."""
    config = DiskStoreConfig(block_bytes=BLOCK_BYTES, capacity_bytes=16 * 4096, path=tmp_path)
    async with device_with(DiskStore(config)) as device:
        device.compute(lora=lora)
        device.tiers.offload(device.pool.take_new_blocks())
        await device.tiers.wait_idle()
    async with device_with(DiskStore(config), model=model) as device:
        told = [event for event in device.tiers.snapshot() if isinstance(event, BlocksStored)]
        assert sum(len(event.block_hashes) for event in told) == num_told
        found = await device.tiers.find(KEYS, 0)
        assert [run.num_blocks for run in found] == [6], "all is found by key"


def _like(block: Any, key: CacheKey) -> Any:
    return type(block)(key, None, block.tokens, None, None)


async def test_host_memory_that_is_not_there(tmp_path: Path) -> None:
    store = RamStore(RamStoreConfig(block_bytes=BLOCK_BYTES, capacity_bytes=1 << 50))
    device = Device(store)
    with pytest.raises(ConfigError, match="does not fit"):
        await device.tiers.start()
