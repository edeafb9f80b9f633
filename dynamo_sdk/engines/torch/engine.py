"""``TorchEngine``: the loop that joins scheduler and model runner.

::

    event loop   generate ─> Scheduler.add      schedule ──┐        ┌── complete ─> mailboxes ─> generators
    one thread                                             └ execute ┘

Everything but ``execute`` happens on the event loop, so the scheduler and the mailboxes need no locks; the
loop stays free while the model runs. All tokens of a step are delivered in one tick of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import anyio
import torch

from dynamo_sdk.errors import DynamoError, EngineFailed, EngineStartError, InvalidRequest, Overloaded
from dynamo_sdk.interfaces import (
    BlockMemory,
    BlockReservation,
    Embeds,
    Engine,
    EngineFacts,
    EngineSetup,
    ExposesBlocks,
    PublishesKVEvents,
    PublishesMetrics,
)
from dynamo_sdk.scheduling import ScheduledSequence, Scheduler, SchedulerConfig, Step
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
    unpack_tokens,
)

from .admission import check_prompt, check_request
from .cache import PagedKVCache
from .config import TorchConfig
from .loader import LoadedModel, load_model
from .mailbox import Mailbox
from .memory import choose_num_blocks
from .reservations import ReservationQueue
from .runner import ModelRunner, SampledToken, StepRow

_log = logging.getLogger(__name__)


class TorchEngine(Engine, Embeds, PublishesKVEvents, PublishesMetrics, ExposesBlocks):
    """One model on one device. ``config`` None = all defaults."""

    def __init__(self, setup: EngineSetup, config: TorchConfig | None = None) -> None:
        self._setup = setup
        self._config = config or TorchConfig()
        self._thread: ThreadPoolExecutor | None = None
        self._loop: asyncio.Task[None] | None = None
        self._failure: DynamoError | None = EngineFailed("the engine has not been started")
        self._is_closed = False
        self._mailboxes: dict[str, Mailbox] = {}  # of requests that the scheduler still works on
        self._num_generating = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = asyncio.Event()  # something was added, aborted or released
        self._in_flight: frozenset[str] = frozenset()
        self._step_done = asyncio.Event()
        self._kv_listeners: list[Callable[[KVEventBatch], None]] = []
        self._metrics_listeners: list[Callable[[ForwardPassMetrics], None]] = []
        self._num_kv_batches = 0

    # -- life

    async def start(self) -> EngineFacts:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch-engine")
        event_loop = asyncio.get_running_loop()
        self._model, self._cache, self._runner = await event_loop.run_in_executor(self._thread, self._load)
        self._scheduler = Scheduler(
            SchedulerConfig(
                block_size=self._config.block_size,
                num_blocks=self._cache.num_blocks,
                max_num_seqs=self._config.max_num_seqs,
                max_num_batched_tokens=self._config.max_num_batched_tokens,
                context_length=self._model.context_length,
                eos_token_ids=frozenset(self._model.eos_token_ids),
                enable_prefix_caching=self._config.enable_prefix_caching,
                cache_namespace=self._cache.layout.fingerprint.encode(),
            )
        )
        self._reservations = ReservationQueue(self._scheduler.reserve, self.release_blocks)
        self._failure = None
        self._loop = asyncio.create_task(self._run(), name="torch-engine")
        return EngineFacts(
            context_length=self._scheduler.config.max_length,
            block_size=self._config.block_size,
            num_blocks=self._cache.num_blocks,
        )

    def _load(self) -> tuple[LoadedModel, PagedKVCache, ModelRunner]:
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
            )
        except (OSError, RuntimeError) as error:
            raise EngineStartError(
                f"no memory for {num_blocks} KV blocks: {error}; lower num_blocks"
            ) from error
        runner = ModelRunner(model, cache)
        runner.warm_up()
        return model, cache, runner

    async def drain(self) -> None:
        await self._idle.wait()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        error = EngineFailed("the engine is closed")
        was_running, self._failure = self._failure is None, error
        if was_running:
            self._abandon(error)
        if self._loop is not None:
            self._wake.set()
            with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
                await self._loop
            self._cache.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        mailbox = self._admit(request)
        try:
            while not mailbox.is_delivered:
                yield await mailbox.take()
        finally:
            await self._leave(mailbox)

    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        self._require_running()
        check_prompt(request.prompt, request.lora, vocab_size=self._model.vocab_size)
        token_ids = unpack_tokens(request.prompt)
        if len(token_ids) > self._model.context_length:
            raise InvalidRequest(
                f"the prompt has {len(token_ids)} tokens, the model takes {self._model.context_length}",
                param="prompt",
            )
        event_loop = asyncio.get_running_loop()
        try:
            vector = await event_loop.run_in_executor(self._thread, self._runner.embed, token_ids)
        except Exception as error:
            raise EngineFailed(f"embedding failed: {error}") from error
        return EmbedOutput(vector=vector, num_prompt_tokens=len(token_ids))

    def _admit(self, request: GenerateRequest) -> Mailbox:
        self._require_running()
        check_request(request, vocab_size=self._model.vocab_size)
        if self._scheduler.load(0.0).num_waiting >= self._config.max_num_waiting:
            raise Overloaded(f"{self._config.max_num_waiting} requests are already waiting")
        mailbox = Mailbox(request, arrival_s=time.monotonic(), eos_token_ids=self._model.eos_token_ids)
        try:
            self._scheduler.add(request)
        except ValueError as error:
            raise InvalidRequest(str(error), param="generated") from error
        self._mailboxes[request.request_id] = mailbox
        self._num_generating += 1
        self._idle.clear()
        self._wake.set()
        return mailbox

    async def _leave(self, mailbox: Mailbox) -> None:
        """The consumer is gone. Whatever the request still holds is free when this returns."""
        self._num_generating -= 1
        if not self._num_generating:
            self._idle.set()
        request_id = mailbox.request.request_id
        if self._mailboxes.get(request_id) is mailbox:
            del self._mailboxes[request_id]
            self._scheduler.abort(request_id)
            self._wake.set()
            if request_id in self._in_flight:  # its blocks are being written until the step ends
                with anyio.CancelScope(shield=True):
                    await self._step_done.wait()
        elif mailbox.finish_reason is FinishReason.HANDOVER and not mailbox.is_delivered:
            self.release_blocks(request_id)  # nobody has learnt that blocks are held

    def _require_running(self) -> None:
        if self._failure is not None:
            raise self._failure

    # -- the loop

    async def _run(self) -> None:
        try:
            while not self._is_closed:
                self._wake.clear()
                self._reservations.grant()
                step = self._scheduler.schedule()
                if step.sequences:
                    await self._run_step(step)
                self._publish_kv_events()
                if not step.sequences:
                    await self._wake.wait()
        except Exception as error:
            _log.exception("the engine's loop broke")
            self._failure = EngineFailed(f"the engine's loop broke: {error!r}")
            self._abandon(self._failure)

    async def _run_step(self, step: Step) -> None:
        started_s = time.monotonic()
        rows = [self._step_row(part, started_s) for part in step.sequences]
        self._in_flight = frozenset(row.request_id for row in rows)
        self._step_done.clear()
        sampled: dict[str, SampledToken] = {}
        event_loop = asyncio.get_running_loop()
        try:
            sampled = await event_loop.run_in_executor(self._thread, self._runner.execute, rows)
        except Exception as error:
            _log.exception("step %d failed", step.number)
            self._fail_step(EngineFailed(f"the model failed: {error!r}"))
        finally:
            self._in_flight = frozenset()
        self._deliver(step, sampled)
        self._step_done.set()
        self._publish_metrics(step, started_s)

    def _step_row(self, part: ScheduledSequence, now_s: float) -> StepRow:
        mailbox = self._mailboxes[part.request_id]
        mailbox.mark_scheduled(now_s)
        return StepRow(
            request_id=part.request_id,
            token_ids=part.token_ids,
            start=part.start,
            block_ids=part.block_ids,
            sampling=mailbox.sampling if part.is_sampling else None,
        )

    def _deliver(self, step: Step, sampled: dict[str, SampledToken]) -> None:
        updates = self._scheduler.complete(step, {name: token.token_id for name, token in sampled.items()})
        now_s = time.monotonic()
        for update in updates:
            mailbox = self._mailboxes[update.request_id]
            mailbox.put(
                update.token_id,
                sampled[update.request_id].logprobs,
                update.finish_reason,
                num_cached_tokens=update.num_cached_tokens,
                now_s=now_s,
            )
            if update.finish_reason is not None:
                del self._mailboxes[update.request_id]

    def _fail_step(self, error: DynamoError) -> None:
        for request_id in self._in_flight:
            self._scheduler.abort(request_id)
            mailbox = self._mailboxes.pop(request_id, None)
            if mailbox is not None:
                mailbox.fail(error)

    def _abandon(self, error: DynamoError) -> None:
        """Fail everybody who waits for something."""
        self._reservations.fail(error)
        for request_id, mailbox in self._mailboxes.items():
            self._scheduler.abort(request_id)
            mailbox.fail(error)
        self._mailboxes.clear()
        self._step_done.set()

    # -- blocks

    @property
    def block_memory(self) -> BlockMemory:
        self._require_running()
        return self._cache

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        return self._scheduler.held_blocks(request_id)

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        self._require_running()
        check_request(request, vocab_size=self._model.vocab_size)
        return await self._reservations.wait(request)

    def release_blocks(self, request_id: str) -> None:
        if self._loop is not None:
            self._scheduler.release(request_id)
            self._wake.set()

    # -- facts

    def load(self) -> LoadSnapshot | None:
        return self._scheduler.load(time.monotonic()) if self._loop is not None else None

    def check_integrity(self) -> None:
        if self._loop is None:
            return
        self._scheduler.check_integrity()
        for request_id in self._mailboxes:
            assert self._scheduler.state_of(request_id) is not None, f"nobody works on {request_id}"

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_listeners.append(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        self._publish_kv_events()  # what has happened so far is part of the snapshot
        events = self._scheduler.kv_snapshot()
        return (KVEventBatch(sequence=self._num_kv_batches - 1, dp_rank=0, events=events),)

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics_listeners.append(listener)

    def _publish_kv_events(self) -> None:
        events = self._scheduler.take_kv_events()
        if not events:
            return
        batch = KVEventBatch(sequence=self._num_kv_batches, dp_rank=0, events=events)
        self._num_kv_batches += 1
        for listener in self._kv_listeners:
            listener(batch)

    def _publish_metrics(self, step: Step, started_s: float) -> None:
        if not self._metrics_listeners:
            return
        now_s = time.monotonic()
        load = self._scheduler.load(now_s)
        metrics = ForwardPassMetrics(
            step=step.number,
            at_s=now_s,
            wall_s=now_s - started_s,
            num_prefill_requests=step.num_prefill_requests,
            num_prefill_tokens=step.num_prefill_tokens,
            num_decode_requests=step.num_decode_requests,
            num_decode_kv_tokens=step.num_decode_kv_tokens,
            num_preempted=len(step.preempted),
            num_waiting=load.num_waiting,
            num_waiting_tokens=load.num_waiting_tokens,
            num_free_blocks=load.num_free_blocks,
        )
        for listener in self._metrics_listeners:
            listener(metrics)
