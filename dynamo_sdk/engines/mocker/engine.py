"""``MockerEngine``: the interfaces of an engine, on top of the ranks."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncGenerator, Callable

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines import stateless
from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.errors import (
    EngineFailed,
    EngineStartError,
    InvalidRequest,
    TicketUnknown,
)
from dynamo_sdk.interfaces import (
    Engine,
    EngineFacts,
    EngineSetup,
    HasKVTiers,
    KVTiersStatistics,
    OpensSources,
    PublishesKVEvents,
    PublishesMetrics,
)
from dynamo_sdk.runtime.clock import Clock, SystemClock
from dynamo_sdk.types import (
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
)

from .build import build_cores
from .config import MockerConfig
from .precise_clock import PreciseClock
from .rank import Rank, RankSource
from .tier_config import planned_tiers
from .tier_statistics import together


class MockerEngine(Engine, OpensSources, PublishesKVEvents, PublishesMetrics, HasKVTiers):
    """Serves without a model. ``config`` None = all defaults; ``clock`` None = live time."""

    def __init__(
        self, setup: EngineSetup, config: MockerConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        self._setup = setup
        self._config = config or MockerConfig()
        self._clock = clock or SystemClock()
        self._own_clock: PreciseClock | None = None
        self._wants_own_clock = clock is None and sys.platform == "linux"
        self._kv_events: Feed[KVEventBatch] = Feed()
        self._metrics: Feed[ForwardPassMetrics] = Feed()
        self._ranks: tuple[Rank, ...] = ()
        self._turns = itertools.count()
        self._is_started = self._is_closed = False
        self._empty: anyio.Event | None = None  # there is one while somebody drains

    # -- life

    async def start(self) -> EngineFacts:
        if self._is_started or self._is_closed:
            raise EngineStartError("a mocker engine starts once; make a new one")
        self._is_started = True
        config = self._config
        if not config.tiers:
            tiers = planned_tiers([tier.plan for tier in self._setup.kv_tiers])
            config = config.model_copy(update={"tiers": tiers})
        cores = build_cores(self._setup.model.path, config)
        await self._clock.sleep(self._config.startup_time_s)
        if self._is_closed:
            raise EngineStartError("the engine was closed while it started")
        if self._wants_own_clock:
            self._clock = self._own_clock = _precise_clock()
        for core in cores:
            core.record_kv_events(self._kv_events.has_listeners)
        self._ranks = tuple(
            Rank(
                core,
                self._clock,
                max_num_waiting=self._config.max_num_waiting,
                kv_events=self._kv_events,
                metrics=self._metrics,
                on_empty=self._on_empty,
            )
            for core in cores
        )
        return EngineFacts(
            context_length=cores[0].max_length,
            block_size=self._config.block_size,
            num_blocks=self._config.num_blocks * self._config.dp_size,
            dp_size=self._config.dp_size,
        )

    async def drain(self) -> None:
        while any(rank.num_consumers for rank in self._ranks):
            self._empty = self._empty or anyio.Event()
            await self._empty.wait()
        await checkpoint()

    async def close(self) -> None:
        self._is_closed = True
        for rank in self._ranks:
            rank.stop("the engine is closed")
        if self._own_clock is not None:
            self._own_clock.close()
        await checkpoint()

    def _on_empty(self) -> None:
        if self._empty is not None:
            self._empty.set()
            self._empty = None

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """``lora`` and ``cache_salt`` only give blocks other names: every adapter is served."""
        source = self.open(request)
        try:
            while not source.is_over:
                yield await source.next()
        finally:
            source.close()

    def open(self, request: GenerateRequest) -> RankSource:
        if self._is_closed or not self._ranks:
            raise EngineFailed("the engine is closed" if self._is_closed else "the engine was not started")
        for field in ("prompt", "generated"):
            if len(getattr(request, field)) % 4:
                raise InvalidRequest(f"{field} is not a whole number of packed tokens", param=field)
        ticket = request.kv_transfer
        if ticket is not None and ticket.connector != stateless.NAME:
            raise TicketUnknown(f"the mocker engine reads no tickets of {ticket.connector!r}")
        return self._rank_of(request).add(request)

    def _rank_of(self, request: GenerateRequest) -> Rank:
        """The rank that the request names, or everybody in turn."""
        ranks = self._ranks
        if request.dp_rank is None:
            return ranks[next(self._turns) % len(ranks)]
        if not 0 <= request.dp_rank < len(ranks):
            raise InvalidRequest(
                f"dp_rank is {request.dp_rank}, this worker's ranks are 0..{len(ranks) - 1}", param="dp_rank"
            )
        return ranks[request.dp_rank]

    # -- facts

    def load(self) -> LoadSnapshot | None:
        """Of all ranks together."""
        loads = [rank.load() for rank in self._ranks]
        return LoadSnapshot(
            at_s=self._clock.now_s(),
            num_running=sum(load.num_running for load in loads),
            num_waiting=sum(load.num_waiting for load in loads),
            num_waiting_tokens=sum(load.num_waiting_tokens for load in loads),
            num_free_blocks=sum(load.num_free_blocks for load in loads),
            num_blocks=sum(load.num_blocks for load in loads),
            block_load_times=next((load.block_load_times for load in loads), None),
        )

    def check_integrity(self) -> None:
        for rank in self._ranks:
            rank.check_integrity()

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)
        for rank in self._ranks:
            rank.core.record_kv_events(True)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        return tuple(rank.kv_snapshot() for rank in self._ranks)

    def kv_tier_statistics(self) -> KVTiersStatistics:
        """Of all ranks together."""
        found = [rank.core.tier_statistics() for rank in self._ranks]
        return together([statistics for statistics in found if statistics is not None])

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics.subscribe(listener)


def _precise_clock() -> PreciseClock:
    try:
        return PreciseClock()
    except OSError as error:
        raise EngineStartError(f"no timer for the mocker engine: {error}") from error
