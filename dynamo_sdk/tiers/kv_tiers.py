"""``KVTiers``: all tiers below one device, as the engine sees them.

::

    a request arrives   saw ──> uses.py: what is asked for often goes further down
                        find, decide ──> load: tier ──> staging ──> the request's own device blocks
    blocks are new      offload ──> a queue and an Offloader per tier
    a store changes     contents ──> KV events

Lives on the engine's event loop; bytes move on threads. Nothing here fails a request: what does not work is
computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import anyio

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import (
    BlockMemory,
    CacheKey,
    KVTierSetup,
    KVTiersStatistics,
    ReadableTiers,
    ReadsPeers,
)
from dynamo_sdk.kv import (
    NOBODY,
    CachedBlock,
    CachesBlocks,
    FrequencySketch,
    Important,
    NotPresent,
    OffloadFilter,
    OffloadQueue,
    OnboardingDecision,
    OnboardingPolicy,
    Others,
    SeenOften,
    TierContents,
    TierSize,
    check_tier_sizes,
    layout_namespace,
)
from dynamo_sdk.types import GenerateRequest, KVEvent, KVTier

from .offloading import Offloader
from .onboarding import FoundRun, LoadReport, Onboarder
from .staging import Staging
from .tier import Tier
from .uses import UseCounter

NUM_LOAD_BUFFERS = 4
"""So many requests load at a time; the next ones wait."""
MAX_QUEUED_BYTES = 1 << 30
"""Of blocks that wait for a tier. They take no memory of their own, but what waits long is gone by then."""


class KVTiers:
    """``pool`` and ``memory``: the device's blocks. ``on_change``: ``take_events`` may give something."""

    def __init__(
        self,
        setups: Sequence[KVTierSetup],
        pool: CachesBlocks,
        memory: BlockMemory,
        on_change: Callable[[], None],
        *,
        policy: OnboardingPolicy | None = None,
    ) -> None:
        block_size, block_bytes = memory.layout.block_size, memory.layout.block_bytes
        self._block_bytes = block_bytes
        self._pool = pool
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="kv-tiers")
        self._staging = Staging(block_bytes, NUM_LOAD_BUFFERS + len(setups))
        self._contents = TierContents(
            [setup.tier for setup in setups],
            block_size,
            lambda key: pool.place_of(key) is not None,
            namespace=layout_namespace(memory.layout),
        )
        device_bytes = pool.num_blocks * block_bytes
        self._setups = tuple(setups)
        _check_sizes(setups, device_bytes, block_bytes)
        self._sketch = FrequencySketch(max(1024, *(_num_blocks(setup, block_bytes) for setup in setups)))
        self.tiers = tuple(self._tier(number, setup, on_change) for number, setup in enumerate(setups))
        self._offloaders = {
            tier.number: Offloader(
                tier, self.tiers[: tier.number], pool, memory, self._contents, self._staging, self._threads
            )
            for tier in self.tiers
            if not isinstance(tier.store, ReadsPeers)  # what lies there is others' to put there
        }
        if policy is None:
            policy = OnboardingPolicy(block_size=block_size, block_bytes=block_bytes)
        self.policy = policy
        self._onboarder = Onboarder(self.tiers, policy, memory, self._staging, self._threads)
        self._block_size = block_size
        self._num_matched_tokens = 0
        self._uses = UseCounter(
            self._sketch,
            pool,
            self._contents,
            {number: down for number, down in self._offloaders.items() if setups[number].plan.min_uses},
            block_size,
            on_change,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def _tier(self, number: int, setup: KVTierSetup, on_change: Callable[[], None]) -> Tier:
        filters: list[OffloadFilter] = [NotPresent(self._contents.keys(number))]
        if setup.plan.min_priority is not None:
            filters.append(Important(setup.plan.min_priority))
        if setup.plan.min_uses > 0:
            filters.append(SeenOften(self._sketch, setup.plan.min_uses))
        queue = OffloadQueue(filters, max(64, MAX_QUEUED_BYTES // self._block_bytes))
        store = setup.build(self._block_bytes)
        return Tier(number, setup.name, setup.tier, store, queue, self._contents, on_change)

    # -- life

    async def start(self) -> None:
        """Open the stores. Raises ``ConfigError``; then nothing stays open."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._staging.open)
            for tier, setup in zip(self.tiers, self._setups, strict=True):
                await tier.start(may_lack=setup.may_lack)
        except BaseException as error:
            await self.close()
            if isinstance(error, OSError):
                raise ConfigError(f"no memory to move KV blocks through: {error}") from error
            raise
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(offloader.run(), name="kv-offload") for offloader in self._offloaders.values()
        ]
        self._tasks.append(loop.create_task(self._uses.run(), name="kv-uses"))

    async def close(self) -> None:
        """What is being copied ends first. Idempotent; cannot be cancelled."""
        tasks, self._tasks = self._tasks, []
        with anyio.CancelScope(shield=True):
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await self._onboarder.close()
            for tier in self.tiers:
                await tier.store.close()
            self._threads.shutdown()
            self._staging.close()

    async def wait_idle(self) -> None:
        """Nothing waits to be brought down, and nothing is being measured. For tests and benchmarks."""
        await self._uses.wait_idle()
        for offloader in self._offloaders.values():
            await offloader.wait_idle()
        await self._onboarder.wait_probes()

    # -- down

    def offload(self, blocks: Sequence[CachedBlock]) -> None:
        """These are new on the device."""
        for offloader in self._offloaders.values():
            offloader.offer(blocks)

    def saw(self, request: GenerateRequest, keys: Sequence[CacheKey]) -> None:
        """A request for the blocks ``keys`` arrived."""
        source = request.kv_source
        for tier in self.tiers if source is not None else ():
            if source is not None and isinstance(tier.store, ReadsPeers):
                tier.store.expect(keys[: source.num_blocks], source)
        self._uses.saw(request, keys)

    # -- up

    async def find(
        self, keys: Sequence[CacheKey], num_device_blocks: int, *, is_counted: bool = False
    ) -> list[FoundRun]:
        """What the tiers have of ``keys`` after those on the device."""
        runs = await self._onboarder.find(keys[num_device_blocks:], is_counted=is_counted)
        if is_counted:
            self._num_matched_tokens += sum(run.num_blocks for run in runs) * self._block_size
        return runs

    def decide(
        self,
        runs: Sequence[FoundRun],
        keys: Sequence[CacheKey],
        num_device_blocks: int,
        num_tokens: int,
        *,
        is_counted: bool = False,
        others: Others = NOBODY,
    ) -> OnboardingDecision:
        """How much of ``runs`` to load for a request of ``num_tokens``, while ``others`` want the device."""
        return self._onboarder.decide(
            runs,
            keys[num_device_blocks:],
            num_device_blocks=num_device_blocks,
            num_tokens=num_tokens,
            is_counted=is_counted,
            others=others,
        )

    async def load(
        self,
        runs: Sequence[FoundRun],
        decision: OnboardingDecision,
        keys: Sequence[CacheKey],
        block_ids: Sequence[int],
        num_device_blocks: int,
    ) -> LoadReport:
        """Load what was decided into ``block_ids[num_device_blocks:]``; it may become less."""
        end = num_device_blocks + decision.num_blocks
        wanted, left = [], decision.num_blocks
        for run in runs:
            if left:
                wanted.append(FoundRun(run.tier, min(run.num_blocks, left)))
                left -= wanted[-1].num_blocks
        return await self._onboarder.load(
            wanted,
            keys[num_device_blocks:end],
            block_ids[num_device_blocks:end],
            limit_s=decision.limit_s,
        )

    # -- facts

    def readable(self) -> ReadableTiers | None:
        """What other workers may read; nothing where we do not read theirs."""
        if not any(isinstance(tier.store, ReadsPeers) for tier in self.tiers):
            return None
        own = tuple(tier.store for tier in self.tiers if tier.kind in (KVTier.HOST, KVTier.DISK))
        return ReadableTiers(stores=own, block_bytes=self._block_bytes)

    def take_events(self) -> tuple[KVEvent, ...]:
        return self._contents.take_events()

    def snapshot(self) -> tuple[KVEvent, ...]:
        """Events that add the tiers to the device's; from now on there are events. ``take_events`` comes
        next: what it gives is in the snapshot."""
        return self._contents.snapshot()

    def statistics(self) -> KVTiersStatistics:
        return KVTiersStatistics(
            tiers=tuple(tier.statistics() for tier in self.tiers),
            num_matched_tokens=self._num_matched_tokens,
            num_decisions=dict(self._onboarder.num_decisions),
        )


def _num_blocks(setup: KVTierSetup, block_bytes: int) -> int:
    return (setup.plan.capacity_bytes or 0) // block_bytes


def _check_sizes(setups: Sequence[KVTierSetup], device_bytes: int, block_bytes: int) -> None:
    """Tiers without a capacity have room for all."""
    sizes = [
        TierSize(setup.name, setup.plan.capacity_bytes)
        for setup in setups
        if setup.plan.capacity_bytes is not None
    ]
    check_tier_sizes(device_bytes, sizes, block_bytes)
