"""``EngineCore``: the loop that joins scheduler and model runner.

::

    event loop   add ─> Scheduler       schedule ──┐        ┌── complete ─> mailboxes ─> generators
    one thread                                     └ execute ┘

Everything but ``execute`` happens on the event loop, so the scheduler and the mailboxes need no locks; the
loop stays free while the model runs. All tokens of a step are delivered in one tick of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import anyio
import msgspec

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest, Overloaded
from dynamo_sdk.interfaces import BlockReservation, CacheKey
from dynamo_sdk.scheduling import Onboarding, ScheduledSequence, Scheduler, SequenceState, Step
from dynamo_sdk.tiers import KVTiers
from dynamo_sdk.types import FinishReason, ForwardPassMetrics, GenerateRequest, LoadSnapshot

from .feeds import KVEventFeed
from .loras import LoraWeights
from .mailbox import SamplingMailbox
from .onboarding import TierLink
from .reservations import ReservationQueue
from .runner import ModelRunner, SampledToken, StepRow

_log = logging.getLogger(__name__)


class EngineCore:
    """Runs from ``start`` until ``stop``, or until it breaks; from then on ``failure`` says why.

    ``eos_token_ids`` end a request; ``max_num_waiting`` more are refused.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        thread: Executor,
        *,
        eos_token_ids: tuple[int, ...],
        max_num_waiting: int,
        kv_events: KVEventFeed,
        metrics: Feed[ForwardPassMetrics],
    ) -> None:
        self.scheduler = scheduler
        self.reservations = ReservationQueue(scheduler.reserve, self.release)
        self.failure: str | None = None
        self._runner = runner
        self._thread = thread
        self._eos_token_ids = eos_token_ids
        self._max_num_waiting = max_num_waiting
        self._kv_events = kv_events
        self._metrics = metrics
        self.tiers: TierLink | None = None
        self._loop: asyncio.Task[None] | None = None
        self._mailboxes: dict[str, SamplingMailbox] = {}  # of requests that the scheduler still works on
        self._num_consumers = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = asyncio.Event()  # something was added, aborted or released
        self._in_flight: frozenset[str] = frozenset()
        self._step_done = asyncio.Event()

    # -- life

    async def start(self, make_tiers: Callable[[Callable[[], None]], KVTiers] | None = None) -> None:
        """``make_tiers(on_change)``: what keeps blocks below the device. Raises what its start raises."""
        if make_tiers is not None:
            tiers = make_tiers(self.publish_kv_events)
            self.tiers = TierLink(self.scheduler, tiers, self._wake.set)
            await tiers.start()
            if self.failure is not None:  # stopped meanwhile
                await tiers.close()
                raise EngineStartError(self.failure)
        self._loop = asyncio.create_task(self._run(), name="torch-engine")

    async def stop(self, reason: str) -> None:
        """Fail everybody, and return when no step is under way any more. Cannot be cancelled."""
        self._abandon(reason)
        self._wake.set()
        if self._loop is not None:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._loop])
        if self.tiers is not None:
            await self.tiers.close()

    async def wait_idle(self) -> None:
        """Return when every consumer has left."""
        await self._idle.wait()

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        for request_id in self._mailboxes:
            assert self.scheduler.state_of(request_id) is not None, f"nobody works on {request_id}"

    # -- requests

    async def add(self, request: GenerateRequest, lora: LoraWeights | None = None) -> SamplingMailbox:
        """Queue a request, with its adapter. Whoever gets a mailbox calls ``leave`` once, at the end."""
        self._num_consumers += 1
        self._idle.clear()
        try:
            mailbox = await self._queue(request, lora)
        except BaseException:
            self._has_left()
            raise
        self._mailboxes[request.request_id] = mailbox
        self._wake.set()
        return mailbox

    async def _queue(self, request: GenerateRequest, lora: LoraWeights | None) -> SamplingMailbox:
        arrival_s = time.monotonic()
        keys: list[CacheKey] | None = None
        is_onboarding = False
        if self.scheduler.state_of(request.request_id) is not SequenceState.RESERVED:  # else it has its place
            self._check_room()
            if self.tiers is not None:
                keys, is_onboarding = await self.tiers.look_up(request)
                if self.failure is not None:
                    raise EngineFailed(self.failure)
        mailbox = SamplingMailbox(request, arrival_s=arrival_s, eos_token_ids=self._eos_token_ids, lora=lora)
        try:
            self.scheduler.add(request, keys, is_onboarding=is_onboarding)
        except ValueError as error:
            raise InvalidRequest(str(error), param="generated") from error
        if is_onboarding:
            self._begin_loads(self.scheduler.start_loads())
        return mailbox

    def _has_left(self) -> None:
        self._num_consumers -= 1
        if not self._num_consumers:
            self._idle.set()

    async def reserve(self, request: GenerateRequest) -> BlockReservation:
        """Blocks for a hand-over, in turn. Raises ``Overloaded`` when too many wait already."""
        self._check_room()
        return await self.reservations.wait(request)

    def load(self, at_s: float) -> LoadSnapshot:
        """Who waits for blocks to be handed over, or for what the tiers have, waits as well."""
        load = self.scheduler.load(at_s)
        return msgspec.structs.replace(
            load,
            num_waiting=load.num_waiting + self._num_outside,
            block_load_times=None if self.tiers is None else self.tiers.block_load_times(at_s),
        )

    @property
    def _num_outside(self) -> int:
        """Who waits and is not known to the scheduler."""
        return len(self.reservations) + (0 if self.tiers is None else self.tiers.num_looking)

    def _check_room(self) -> None:
        if self.scheduler.num_waiting + self._num_outside >= self._max_num_waiting:
            raise Overloaded(f"{self._max_num_waiting} requests are waiting already (max_num_waiting)")

    async def leave(self, mailbox: SamplingMailbox) -> None:
        """The consumer is gone. Whatever the request still holds is free when this returns."""
        self._has_left()
        request_id = mailbox.request.request_id
        if self.tiers is not None and self._mailboxes.get(request_id) is mailbox:
            await self.tiers.cancel(request_id)
        if self._mailboxes.get(request_id) is mailbox:
            del self._mailboxes[request_id]
            self.scheduler.abort(request_id)
            self._wake.set()
            if request_id in self._in_flight:  # its blocks are being written until the step ends
                with anyio.CancelScope(shield=True):
                    await self._step_done.wait()
        elif mailbox.finish_reason is FinishReason.HANDOVER and not mailbox.is_over:
            self.release(request_id)  # nobody has learnt that blocks are held

    def release(self, request_id: str) -> None:
        self.scheduler.release(request_id)
        self._wake.set()

    # -- the loop

    async def _run(self) -> None:
        try:
            while self.failure is None:
                self._wake.clear()
                self.reservations.grant()
                step = self.scheduler.schedule()
                self._begin_loads(step.onboarding)
                if step.sequences:
                    await self._run_step(step)
                self.publish_kv_events()
                if self.tiers is not None:
                    self.tiers.collect()
                if not step.sequences and self.failure is None:
                    await self._wake.wait()
        except BaseException as error:  # cancelled too: nobody may wait for a step that never ends
            self._in_flight = frozenset()
            self._abandon(f"the engine's loop broke: {error!r}")
            if not isinstance(error, Exception):
                raise
            _log.exception("the engine's loop broke")

    def _begin_loads(self, onboardings: Iterable[Onboarding]) -> None:
        for onboarding in onboardings:
            assert self.tiers is not None
            self.tiers.begin(onboarding)

    async def _run_step(self, step: Step) -> None:
        started_s = time.monotonic()
        rows = [self._step_row(part, started_s) for part in step.sequences]
        self._in_flight = frozenset(row.request_id for row in rows)
        self._step_done.clear()
        sampled: dict[str, SampledToken] | None = None
        try:
            sampled = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._runner.execute, rows
            )
        except Exception as error:
            _log.exception("step %d failed", step.number)
            self._fail_step(f"the model failed: {error!r}")
        self._in_flight = frozenset()
        self._deliver(step, sampled or {})
        self._step_done.set()
        if self.tiers is not None and sampled is not None:
            now_s = time.monotonic()
            self.tiers.measure(step, now_s - started_s, now_s)
        if self._metrics.has_listeners:
            self._metrics.publish(self._step_metrics(step, started_s))

    def _step_row(self, part: ScheduledSequence, now_s: float) -> StepRow:
        mailbox = self._mailboxes[part.request_id]
        report = None if self.tiers is None else self.tiers.take_report(part.request_id)
        if report is None:
            mailbox.mark_scheduled(now_s)
        else:
            mailbox.mark_scheduled(now_s, transfer_s=report.seconds, transfer_bytes=report.num_bytes)
        return StepRow(
            request_id=part.request_id,
            token_ids=part.token_ids,
            start=part.start,
            block_ids=part.block_ids,
            sampling=mailbox.sampling if part.is_sampling else None,
            lora=mailbox.lora,
        )

    def _deliver(self, step: Step, sampled: dict[str, SampledToken]) -> None:
        updates = self.scheduler.complete(step, {name: token.token_id for name, token in sampled.items()})
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

    def _fail_step(self, reason: str) -> None:
        for request_id in self._in_flight:
            mailbox = self._mailboxes.pop(request_id, None)
            if mailbox is not None:  # else its consumer has left meanwhile
                self.scheduler.abort(request_id)
                mailbox.fail(EngineFailed(reason))

    def _abandon(self, reason: str) -> None:
        """Nothing more will be run: fail everybody who waits for something."""
        self.failure = self.failure or reason
        self.reservations.fail(reason)
        for request_id, mailbox in self._mailboxes.items():
            self.scheduler.abort(request_id)
            mailbox.fail(EngineFailed(reason))
        self._mailboxes.clear()
        if not self._in_flight:
            self._step_done.set()

    # -- facts

    def publish_kv_events(self) -> None:
        """The device's first: what the tiers say may follow it."""
        self._kv_events.publish_events(self.scheduler.pool.take_events())
        if self.tiers is not None:
            self._kv_events.publish_events(self.tiers.tiers.take_events())

    def _step_metrics(self, step: Step, started_s: float) -> ForwardPassMetrics:
        now_s = time.monotonic()
        load = self.load(now_s)
        return ForwardPassMetrics(
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
