"""``TierWorker``: a worker's half. The tiers live on a thread with an event loop of its own, beside vLLM's.

::

    vLLM's thread   begin(orders) ── step ── end() ── report()
                        │                      │         ▲
    the tiers' loop     └ forget   loads, saves┘         └ what was stored, measured, lost
                                      ▲
                                      └ other workers read: PeerServer
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import (
    CacheKey,
    KVSharing,
    KVSharingStatistics,
    KVStore,
    KVTierSetup,
    KVTiersStatistics,
    ReadsPeers,
)
from dynamo_sdk.kv import OnboardingDecision, OnboardingPolicy, OnboardingReason
from dynamo_sdk.stores import PeerServer
from dynamo_sdk.tiers import KVTiers
from dynamo_sdk.types import GenerateRequest, KVSource, KVTier, SamplingParams

from .device import DeviceBlocks
from .memory import PagedMemory
from .messages import LoadOrder, Orders, Report, Sighting, TierChange, TierLoad
from .observed import ObservedPeers, ObservedStore, Seal
from .sharing import address_of, part_of

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 0.005
"""How long a step in which vLLM computes nothing waits for a load or a save to end: else vLLM would run
through empty steps and keep the interpreter from the tiers."""


class TierWorker:
    """``start`` opens the tiers and blocks until they are open; all else but ``end`` returns at once.
    It is process ``rank`` of ``num_ranks``, of which each has its part of every block. ``sharing``: where
    others may read them; None where they cannot. ``shared_at``: where they do, then."""

    def __init__(
        self,
        setups: Sequence[KVTierSetup],
        memory: PagedMemory,
        num_blocks: int,
        rank: int,
        num_ranks: int = 1,
        sharing: KVSharing | None = None,
    ) -> None:
        self._memory = memory
        self._device = DeviceBlocks(num_blocks)
        self._rank = rank
        self._num_ranks = num_ranks
        self._sharing = sharing
        self._seal = Seal(memory.layout, rank)
        self._peers: list[ReadsPeers] = []
        self._readable: list[KVStore] = []
        self._server: PeerServer | None = None
        self._told_sharing: KVSharingStatistics | None = None
        self.shared_at: str | None = None
        self._lock = threading.Lock()
        self._report = Report(rank=rank, step=0)
        self._loaded: set[str] = set()
        self._invalid: set[int] = set()
        self._num_loading = 0
        self._statistics: KVTiersStatistics | None = None
        self._submitted = self._taken_in = self._settled = -1
        self._is_settling = False
        self._news = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kv-tiers-loop", daemon=True)
        self._setups = [self._observed(number, setup) for number, setup in enumerate(setups)]
        self._tiers: KVTiers | None = None

    def start(self) -> None:
        """Raises ``ConfigError`` and ``PluginError``."""
        self._thread.start()
        self._tiers = self._on_loop(self._open())

    def close(self) -> None:
        """What is being copied ends first. Idempotent."""
        tiers, self._tiers = self._tiers, None
        if tiers is not None:
            self._on_loop(self._close(tiers))
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    # -- vLLM's thread

    def begin(self, orders: Orders) -> None:
        """Before anything of the step is written."""
        self._device.forget(orders.overwritten)

    def load(self, orders: Orders) -> None:
        """Begin what was ordered to be loaded."""
        if orders.loads:
            self._memory.fence()
        with self._lock:
            self._num_loading += len(orders.loads)
        for order in orders.loads:
            self._spawn(self._load(order))

    def end(self, orders: Orders) -> None:
        """The step is under way or over: what it made full goes down."""
        if orders.saves:
            self._memory.fence()
            self._device.put(orders.saves)
        if orders.saves or orders.sightings:
            self._submitted = orders.step
            self._spawn(self._save(orders))
        if orders.is_idle and self._is_busy():
            self._news.wait(IDLE_WAIT_S)
        self._news.clear()

    def take_loaded(self) -> set[str]:
        """Requests whose loads have ended."""
        with self._lock:
            loaded, self._loaded = self._loaded, set()
        return loaded

    def take_invalid(self) -> set[int]:
        """Blocks that were to be loaded and were not."""
        with self._lock:
            invalid, self._invalid = self._invalid, set()
        return invalid

    def take_statistics(self) -> KVTiersStatistics | None:
        """What the tiers hold and did; None where nothing has changed since the last call."""
        with self._lock:
            statistics, self._statistics = self._statistics, None
        return statistics

    def take_sharing(self) -> KVSharingStatistics | None:
        """What others have read; None where nothing has changed since the last call."""
        if self._server is None:
            return None
        said = self._server.statistics()
        sharing = KVSharingStatistics(
            num_lookups=said.num_lookups, num_blocks=said.num_blocks, num_refused=said.num_refused
        )
        if sharing == self._told_sharing:
            return None
        self._told_sharing = sharing
        return sharing

    def report(self, orders: Orders) -> Report:
        """Since the last one."""
        with self._lock:
            report, self._report = self._report, Report(rank=self._rank, step=0)
            settled = self._settled if self._settled < self._submitted else orders.step
        return replace(report, step=orders.step, settled=settled)

    def _is_busy(self) -> bool:
        with self._lock:
            return self._num_loading > 0 or self._settled < self._submitted

    # -- the tiers' loop

    def _observed(self, number: int, setup: KVTierSetup) -> KVTierSetup:
        def build(block_bytes: int) -> KVStore:
            store = setup.build(block_bytes)
            on_change = partial(self._changed, number)
            if not isinstance(store, ReadsPeers):
                if setup.tier in (KVTier.HOST, KVTier.DISK):
                    self._readable.append(store)
                return ObservedStore(store, on_change, self._seal)
            if self._sharing is None:
                raise ConfigError(
                    f"tier {setup.name!r} reads other workers, for which a worker of dynamo_sdk must have "
                    "started vLLM, without data parallelism; leave the tier out"
                )
            peers = ObservedPeers(store, store, on_change, self._seal)
            self._peers.append(peers)
            self._report.peer_tiers.append(number)
            return peers

        return replace(setup, build=build)

    def _changed(self, tier: int, is_stored: bool, keys: Sequence[CacheKey]) -> None:
        with self._lock:
            self._report.changes.append(TierChange(tier, is_stored, tuple(keys)))

    async def _open(self) -> KVTiers:
        layout = self._memory.layout
        policy = _Recording(layout.block_size, layout.block_bytes, self._measured)
        tiers = KVTiers(self._setups, self._device, self._memory, lambda: None, policy=policy)
        await tiers.start()
        try:
            await self._serve()
        except BaseException:
            await tiers.close()
            raise
        return tiers

    async def _serve(self) -> None:
        """Let others read what is kept here, where theirs is read here. Raises ``ConfigError``."""
        if self._sharing is None or not self._peers:
            return
        if not self._readable:
            raise ConfigError(
                "kv.tiers: workers read each other's host memory and disks, and none of them has any; "
                "put a tier such as ram before shared"
            )
        secret = self._sharing.secret
        self._server = PeerServer(
            self._readable,
            self._memory.layout.block_bytes,
            secret=None if secret is None else secret.encode(),
        )
        address = address_of(self._rank, self._num_ranks, self._sharing.address)
        try:
            [self.shared_at] = await self._server.start([address])
        except OSError as error:
            raise ConfigError(f"other workers cannot read the KV tiers at {address}: {error}") from error

    def _expect(self, keys: Sequence[CacheKey], source: KVSource | None) -> None:
        part = None if source is None else part_of(source, self._rank, self._num_ranks)
        if part is not None:
            for peers in self._peers:
                peers.expect(keys[: part.num_blocks], part)

    async def _close(self, tiers: KVTiers) -> None:
        if self._server is not None:
            await self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await tiers.close()

    def _measured(self, load: TierLoad) -> None:
        with self._lock:
            self._report.loads.append(load)

    async def _load(self, order: LoadOrder) -> None:
        num_loaded = 0
        try:
            tiers = self._opened()
            self._expect(order.keys, order.source)
            runs = await tiers.find(order.keys, 0)
            num_found = sum(run.num_blocks for run in runs)
            decision = OnboardingDecision(
                num_blocks=num_found, reason=OnboardingReason.LOAD, limit_s=order.limit_s
            )
            report = await tiers.load(runs, decision, order.keys, order.block_ids, 0)
            num_loaded = report.num_blocks
        except Exception:  # a bug costs a prefix
            logger.exception("request %s gets nothing from the tiers", order.request_id)
        finally:
            with self._lock:
                self._num_loading -= 1
                self._loaded.add(order.request_id)
                self._invalid.update(order.block_ids[num_loaded:])
                if num_loaded < len(order.keys):
                    self._report.lost.append(order.keys[num_loaded])
                    self._report.cut_short.append(order.request_id)
            self._news_come()

    async def _save(self, orders: Orders) -> None:
        tiers = self._opened()
        tiers.offload([block for block, _ in orders.saves])
        for sighting in orders.sightings:
            await self._sight(tiers, sighting)
        self._taken_in = max(self._taken_in, orders.step)
        if not self._is_settling:
            self._is_settling = True
            await self._settle(tiers)

    async def _settle(self, tiers: KVTiers) -> None:
        """When nothing is on its way to a tier any more, all that was taken in until then is settled."""
        step = -1
        while step < self._taken_in:
            step = self._taken_in
            await tiers.wait_idle()
            with self._lock:
                self._settled = step
            self._news_come()
        self._is_settling = False

    def _news_come(self) -> None:
        statistics = None if self._tiers is None else self._tiers.statistics()
        with self._lock:
            self._statistics = statistics
        self._news.set()

    async def _sight(self, tiers: KVTiers, sighting: Sighting) -> None:
        if sighting.is_new:
            request = GenerateRequest(
                request_id="",
                model="",
                prompt=sighting.prompt,
                sampling=SamplingParams(max_tokens=1),
                lora=sighting.lora,
                cache_salt=sighting.cache_salt,
                priority=sighting.priority,
            )
            tiers.saw(request, sighting.keys)
        if sighting.is_probe:
            self._expect(sighting.keys, sighting.source)
            keys, first = sighting.keys, sighting.num_device_blocks
            runs = await tiers.find(keys, first)
            tiers.decide(runs, keys, first, len(sighting.prompt))

    def _opened(self) -> KVTiers:
        assert self._tiers is not None
        return self._tiers

    # -- between them

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        def begin() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Recording(OnboardingPolicy):
    """Passes on how long loads took; decisions are the scheduler's."""

    def __init__(self, block_size: int, block_bytes: int, listener: Callable[[TierLoad], None]) -> None:
        super().__init__(block_size=block_size, block_bytes=block_bytes)
        self._listener = listener

    def loaded(self, tier: str, num_blocks: int, seconds: float, now_s: float) -> None:
        super().loaded(tier, num_blocks, seconds, now_s)
        self._listener(TierLoad(tier, num_blocks, seconds))
