"""``TorchEngine``: the interfaces of an engine, on top of ``EngineCore``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.engines.loras import LoraTable, adapter_digest
from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest
from dynamo_sdk.interfaces import (
    AdaptsLora,
    BlockMemory,
    BlockReservation,
    Embeds,
    Engine,
    EngineFacts,
    EngineSetup,
    ExposesBlocks,
    HasKVTiers,
    KVTiersStatistics,
    PublishesKVEvents,
    PublishesMetrics,
    ReadableTiers,
)
from dynamo_sdk.kv import onboarding_policy
from dynamo_sdk.scheduling import Scheduler, SchedulerConfig
from dynamo_sdk.tiers import KVTiers
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
    LoraSpec,
    unpack_tokens,
)

from .admission import check_prompt, check_request
from .cache import PagedKVCache
from .config import TorchConfig
from .core import EngineCore
from .feeds import KVEventFeed
from .loader import LoadedModel, load_model
from .loras import LoraWeights
from .memory import choose_num_blocks
from .runner import ModelRunner

_CLOSED = "the engine is closed"


@dataclass(frozen=True, slots=True)
class _Started:
    """What exists once the model is loaded."""

    model: LoadedModel
    cache: PagedKVCache
    runner: ModelRunner
    core: EngineCore


class TorchEngine(Engine, Embeds, AdaptsLora, PublishesKVEvents, PublishesMetrics, ExposesBlocks, HasKVTiers):
    """One model on one device. ``config`` None = all defaults."""

    def __init__(self, setup: EngineSetup, config: TorchConfig | None = None) -> None:
        self._setup = setup
        self._config = config or TorchConfig()
        self._kv_events = KVEventFeed()
        self._metrics: Feed[ForwardPassMetrics] = Feed()
        self._thread: ThreadPoolExecutor | None = None
        self._started: _Started | None = None
        self._is_closed = False
        self._loras = LoraTable[LoraWeights]()
        self._lora_digests: dict[str, bytes] = {}

    # -- life

    async def start(self) -> EngineFacts:
        if self._thread is not None or self._is_closed:
            raise EngineStartError("a torch engine starts once; make a new one")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch-engine")
        started = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        if self._is_closed:
            raise EngineStartError("the engine was closed while it started")
        self._started = started
        await started.core.start(partial(self._make_tiers, started) if self._setup.kv_tiers else None)
        return EngineFacts(
            context_length=started.core.scheduler.config.max_length,
            block_size=self._config.block_size,
            num_blocks=started.cache.num_blocks,
            model_digest=started.model.digest,
        )

    def _make_tiers(self, started: _Started, on_change: Callable[[], None]) -> KVTiers:
        layout = started.cache.layout
        policy = onboarding_policy(
            self._config.kv_onboarding, block_size=layout.block_size, block_bytes=layout.block_bytes
        )
        return KVTiers(
            self._setup.kv_tiers, started.core.scheduler.pool, started.cache, on_change, policy=policy
        )

    def _load(self) -> _Started:
        assert self._thread is not None
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        model = load_model(self._setup.model.path, self._config)
        num_blocks = choose_num_blocks(self._config, model)
        try:
            cache = PagedKVCache(
                model.geometry,
                block_size=self._config.block_size,
                num_blocks=num_blocks,
                device=model.device,
                model_digest=model.digest,
                is_populated=self._config.says_kv_memory,
            )
        except (OSError, RuntimeError) as error:
            raise EngineStartError(
                f"no memory for {num_blocks} KV blocks: {error}; lower num_blocks"
            ) from error
        runner = ModelRunner(model, cache)
        runner.warm_up()
        scheduler = Scheduler(
            SchedulerConfig(
                block_size=self._config.block_size,
                num_blocks=num_blocks,
                max_num_seqs=self._config.max_num_seqs,
                max_num_batched_tokens=self._config.max_num_batched_tokens,
                context_length=model.context_length,
                eos_token_ids=frozenset(model.eos_token_ids),
                enable_prefix_caching=self._config.enable_prefix_caching,
                cache_namespace=cache.layout.fingerprint.encode(),
                lora_digests=self._lora_digests,
            )
        )
        scheduler.pool.record_events(self._kv_events.has_listeners)
        core = EngineCore(
            scheduler,
            runner,
            self._thread,
            eos_token_ids=model.eos_token_ids,
            max_num_waiting=self._config.max_num_waiting,
            kv_events=self._kv_events,
            metrics=self._metrics,
        )
        return _Started(model, cache, runner, core)

    async def drain(self) -> None:
        if self._started is not None:
            await self._started.core.wait_idle()

    async def close(self) -> None:
        self._is_closed = True
        if self._started is not None:
            await self._started.core.stop(_CLOSED)
            self._started.cache.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _running(self) -> _Started:
        started = self._started
        if started is None:
            raise EngineFailed(_CLOSED if self._is_closed else "the engine has not been started")
        if started.core.failure is not None:
            raise EngineFailed(started.core.failure)
        return started

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        running = self._running()
        check_request(request, vocab_size=running.model.vocab_size)
        with self._loras.using(request.lora) as lora:
            mailbox = await running.core.add(request, lora)
            try:
                while not mailbox.is_over:
                    yield await mailbox.next()
            finally:
                await running.core.leave(mailbox)

    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        running = self._running()
        check_prompt(request.prompt, vocab_size=running.model.vocab_size)
        token_ids = unpack_tokens(request.prompt)
        longest = running.model.context_length
        if len(token_ids) > longest:
            raise InvalidRequest(
                f"the prompt has {len(token_ids)} tokens, the model takes {longest}", param="prompt"
            )
        event_loop = asyncio.get_running_loop()
        with self._loras.using(request.lora) as lora:
            try:
                vector = await event_loop.run_in_executor(self._thread, running.runner.embed, token_ids, lora)
            except Exception as error:
                raise EngineFailed(f"embedding failed: {error!r}") from error
        return EmbedOutput(vector=vector, num_prompt_tokens=len(token_ids))

    # -- adapters

    async def load_lora(self, lora: LoraSpec) -> None:
        await self._loras.load(lora, partial(self._load_lora, lora))

    async def _load_lora(self, lora: LoraSpec) -> LoraWeights:
        layers, event_loop = self._running().runner.loras, asyncio.get_running_loop()
        digest = await event_loop.run_in_executor(self._thread, adapter_digest, Path(lora.path))
        weights = await event_loop.run_in_executor(self._thread, layers.load, lora.path)
        if await event_loop.run_in_executor(self._thread, adapter_digest, Path(lora.path)) != digest:
            raise InvalidRequest(
                f"adapter {lora.name!r}: its files changed while they were read", param="lora"
            )
        self._lora_digests[lora.name] = digest.encode()
        return weights

    async def unload_lora(self, name: str) -> None:
        await self._loras.unload(name, _drop)

    def loras(self) -> tuple[LoraSpec, ...]:
        return self._loras.specs()

    # -- blocks

    @property
    def block_memory(self) -> BlockMemory:
        return self._running().cache

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        if self._started is None:
            raise KeyError(request_id)
        return self._started.core.scheduler.held_blocks(request_id)

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        running = self._running()
        check_request(request, vocab_size=running.model.vocab_size)
        with self._loras.using(request.lora):
            return await running.core.reserve(request)

    def kv_identity(self, request: GenerateRequest) -> bytes:
        return b"" if request.lora is None else self._lora_digests.get(request.lora, b"")

    def release_blocks(self, request_id: str) -> None:
        if self._started is not None:
            self._started.core.release(request_id)

    # -- facts

    def load(self) -> LoadSnapshot | None:
        return self._started.core.load(time.monotonic()) if self._started is not None else None

    def check_integrity(self) -> None:
        if self._started is not None:
            self._started.core.check_integrity()

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)
        if self._started is not None:
            self._started.core.scheduler.pool.record_events(True)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        if self._started is None:
            return (self._kv_events.snapshot(()),)
        core = self._started.core
        tiers = () if core.tiers is None else core.tiers.tiers.snapshot()
        core.publish_kv_events()  # what has happened so far is part of the snapshot
        return (self._kv_events.snapshot(core.scheduler.pool.snapshot() + tiers),)

    def kv_tier_statistics(self) -> KVTiersStatistics:
        tiers = None if self._started is None else self._started.core.tiers
        return KVTiersStatistics(tiers=()) if tiers is None else tiers.tiers.statistics()

    def readable_tiers(self) -> ReadableTiers | None:
        tiers = None if self._started is None else self._started.core.tiers
        return None if tiers is None else tiers.tiers.readable()

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics.subscribe(listener)


async def _drop(weights: LoraWeights) -> None:
    """The table held the last reference."""
    await checkpoint()
