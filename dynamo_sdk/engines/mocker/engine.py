"""``MockerEngine``: the interfaces of an engine, on top of the ranks."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines import stateless
from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.errors import (
    ConfigError,
    EngineFailed,
    EngineStartError,
    InvalidRequest,
    PluginError,
    TicketUnknown,
)
from dynamo_sdk.interfaces import (
    Engine,
    EngineFacts,
    EngineSetup,
    PublishesKVEvents,
    PublishesMetrics,
)
from dynamo_sdk.plugins.importing import import_object
from dynamo_sdk.runtime.clock import Clock, SystemClock
from dynamo_sdk.scheduling import SchedulerConfig
from dynamo_sdk.types import (
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
)

from .config import MockerConfig
from .core import MockerCore
from .model import MockedModel, read_model
from .rank import Rank
from .timing import TimingModel
from .tokens import TokenSource
from .transfers import TransferCost

_BYTES_PER_GB = 1e9


class MockerEngine(Engine, PublishesKVEvents, PublishesMetrics):
    """Serves without a model. ``config`` None = all defaults; ``clock`` is the live one unless given."""

    def __init__(
        self, setup: EngineSetup, config: MockerConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        self._setup = setup
        self._config = config or MockerConfig()
        self._clock = clock or SystemClock()
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
        cores = build_cores(self._setup.model.path, self._config)
        await self._clock.sleep(self._config.startup_time_s)
        if self._is_closed:
            raise EngineStartError("the engine was closed while it started")
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
        await checkpoint()

    def _on_empty(self) -> None:
        if self._empty is not None:
            self._empty.set()
            self._empty = None

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """``lora`` and ``cache_salt`` only give blocks other names: every adapter is served."""
        if self._is_closed or not self._ranks:
            raise EngineFailed("the engine is closed" if self._is_closed else "the engine was not started")
        for field in ("prompt", "generated"):
            if len(getattr(request, field)) % 4:
                raise InvalidRequest(f"{field} is not a whole number of packed tokens", param=field)
        ticket = request.kv_transfer
        if ticket is not None and ticket.connector != stateless.NAME:
            raise TicketUnknown(f"the mocker engine reads no tickets of {ticket.connector!r}")
        rank = self._rank_of(request)
        mailbox = rank.add(request)
        try:
            while not mailbox.is_delivered:
                yield await mailbox.take()
        finally:
            rank.leave(mailbox)

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
        )

    def check_integrity(self) -> None:
        for rank in self._ranks:
            rank.check_integrity()

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        return tuple(rank.kv_snapshot() for rank in self._ranks)

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics.subscribe(listener)


def build_cores(model_path: str, config: MockerConfig) -> tuple[MockerCore, ...]:
    """One core per data-parallel rank, for an engine or a simulation. Raises ``EngineStartError``."""
    model = read_model(model_path, config)
    timing = _timing(config)
    try:
        tokens = _tokens(model, config)
        scheduling = SchedulerConfig(
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            context_length=model.context_length or config.num_blocks * config.block_size,
            eos_token_ids=frozenset(model.eos_token_ids),
            enable_prefix_caching=config.enable_prefix_caching,
        )
    except (ValueError, ConfigError) as error:
        raise EngineStartError(f"the mocker engine cannot run like this: {error}") from error
    transfer_cost = TransferCost(
        bytes_per_token=model.kv_bytes_per_token,
        bytes_per_s=config.kv_transfer_gb_per_s * _BYTES_PER_GB,
        is_cached_free=config.kv_transfer_timing == "destination_missing",
    )
    return tuple(
        MockerCore(
            scheduling,
            tokens,
            timing,
            transfer_cost,
            speedup_ratio=config.speedup_ratio,
            dp_rank=dp_rank,
        )
        for dp_rank in range(config.dp_size)
    )


def _tokens(model: MockedModel, config: MockerConfig) -> TokenSource:
    quarter = model.vocab_size // 4
    first_id, end_id = config.output_ids or (quarter, max(model.vocab_size - quarter, quarter + 1))
    return TokenSource(
        first_id,
        min(end_id, model.vocab_size),
        eos_token_ids=model.eos_token_ids,
        eos_after_tokens=config.eos_after_tokens,
    )


def _timing(config: MockerConfig) -> TimingModel:
    try:
        factory = import_object(config.timing, what="the mocker's timing model")
        timing = factory(**config.timing_args) if callable(factory) else None
    except PluginError as error:
        raise EngineStartError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise EngineStartError(f"timing model {config.timing}: {error}") from error
    if not isinstance(timing, TimingModel):
        raise EngineStartError(f"timing model {config.timing} does not make a TimingModel")
    return timing
