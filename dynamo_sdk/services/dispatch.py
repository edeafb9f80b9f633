"""Drives request flows: carries out what each flow asks, with the real router, sockets and clock.

The flow decides, this acts. One ``Dispatcher`` per frontend, one ``DispatchedCall`` per request; cancelling
that (disconnect, time-out, shutdown) is the one way in which everything ends early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.flow import (
    Action,
    AdmissionLimits,
    CancelLeg,
    Emit,
    Fail,
    FlowConfig,
    Migrated,
    Observe,
    ReleaseBlocks,
    RequestFlow,
    Route,
    Send,
)
from dynamo_sdk.interfaces import Router
from dynamo_sdk.runtime.background import Background
from dynamo_sdk.runtime.calls import CallListener, PushedCall
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.types import GenerateChunk, GenerateRequest, Role, WorkerRecord

from .admission import Admission
from .choosing import Chooser
from .decision_writer import DecisionWriter
from .legs import Legs
from .openai.backend import NO_HINTS, BackendCall, ChunkSink, RoutingHints
from .pools import Pools

logger = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """``stall_timeout_s``: a leg that says nothing for so long is given up. ``wait_for_worker_s``: how
    long a request whose worker died waits for another one to appear. ``max_prefill_tokens``: requests wait
    here, as ``admission`` says, while every worker has more prompt tokens to compute; None = they never do.
    ``parity_probes``: ask each new worker whether its block keys are as predicted, where routers need them.
    ``decision_log``: a folder for what routers decided, None = nowhere; ``decision_log_bytes``: at most so
    much of it."""

    stall_timeout_s: float = 120.0
    wait_for_worker_s: float = 30.0
    max_prefill_tokens: int | None = None
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    parity_probes: bool = True
    decision_log: str | None = None
    decision_log_bytes: int = 256 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class ModelRoute:
    """How requests of one model travel. ``routers``: one per pool, since they learn separately."""

    name: str
    config: FlowConfig
    routers: dict[Role, Router]
    on_migration: Callable[[int], None]


class Dispatcher:
    """Runs requests against the pools. All methods on one event loop."""

    def __init__(
        self,
        pools: Pools,
        clock: Clock,
        limits: DispatchLimits,
        rng: Random | None = None,
        log: DecisionWriter | None = None,
    ) -> None:
        self._pools = pools
        self._clock = clock
        self._limits = limits
        self._chooser = Chooser(pools, clock, rng or Random(), log)
        self._background = Background()
        self.admission = Admission(pools, limits.max_prefill_tokens, limits.admission)
        self._end_news = pools.on_news(self.admission.let_in)

    def start(
        self,
        request: GenerateRequest,
        route: ModelRoute,
        deadline_s: float,
        sink: ChunkSink,
        hints: RoutingHints = NO_HINTS,
    ) -> DispatchedCall:
        """Give ``sink`` the request's chunks, whatever it takes until ``deadline_s`` of the clock."""
        call = DispatchedCall(self, request, route, deadline_s, sink, hints, self._clock, self._limits)
        call.start()
        return call

    async def close(self) -> None:
        self._end_news()
        await self._background.close()

    def in_background(self, work: Coroutine[object, object, None]) -> None:
        self._background.start(work)

    def observe(self, route: ModelRoute, seen: Observe) -> None:
        """Let pools and router learn a fact."""
        self._chooser.observe(route.name, route.routers[seen.pool], seen.fact)
        self.admission.let_in()

    def open(
        self, worker: WorkerRecord, request: GenerateRequest, deadline_s: float, listener: CallListener
    ) -> PushedCall:
        left_s = max(0.0, deadline_s - self._clock.now_s())
        client = self._pools.client_of(worker)
        return client.push(worker.worker_id, "generate", request, listener=listener, timeout_s=left_s)

    def eligible(self, request: GenerateRequest, ask: Route) -> list[WorkerRecord]:
        workers = self._pools.workers(request.served_name, ask.pool)
        if not ask.excluded:
            return workers
        return [worker for worker in workers if worker.worker_id not in ask.excluded]

    async def wait_for_worker(self, request: GenerateRequest, ask: Route, deadline_s: float) -> None:
        """Return when there is one, or when that has taken too long."""
        wait_s = min(self._limits.wait_for_worker_s, deadline_s - self._clock.now_s())
        await self._pools.wait_for_worker(lambda: bool(self.eligible(request, ask)), wait_s)

    def choose(self, flow: RequestFlow, route: ModelRoute, ask: Route, hints: RoutingHints) -> list[Action]:
        """Ask the pool's router; report what came of it."""
        return self._chooser.choose(flow, route.name, route.routers[ask.pool], ask, hints)

    async def release(self, worker_id: str, request_id: str) -> None:
        """Tell a prefill worker that nobody will fetch what it holds. Best effort."""
        for record in self._pools.all_workers():
            if record.worker_id == worker_id:
                client = self._pools.client_of(record)
                try:
                    await client.call(record.worker_id, "release", request_id, timeout_s=RELEASE_TIMEOUT_S)
                except DynamoError as error:
                    logger.info(
                        "%s was not told to release %s; its ticket will expire: %s",
                        worker_id, request_id, error,
                    )  # fmt: skip


class DispatchedCall(BackendCall):
    """One request under way. Facts about its legs come in, the flow says what to do, and it is done at once:
    between a worker's frame and the sink there is no task and no queue. Only waiting for a worker to
    appear takes a task."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        request: GenerateRequest,
        route: ModelRoute,
        deadline_s: float,
        sink: ChunkSink,
        hints: RoutingHints,
        clock: Clock,
        limits: DispatchLimits,
    ) -> None:
        self._dispatcher = dispatcher
        self._route = route
        self._deadline_s = deadline_s
        self._sink = sink
        self._hints = hints
        self._flow = RequestFlow(request, route.config)
        self._legs = Legs(clock, limits.stall_timeout_s)
        self._waiting: asyncio.Task[None] | None = None
        self._is_over = False
        self._is_wanted = True

    def start(self) -> None:
        self._carry_out(self._flow.start())

    def cancel(self) -> None:
        self._is_wanted = False
        if not self._is_over:
            self._end()

    def pause(self) -> None:
        self._legs.pause()

    def resume(self) -> None:
        self._legs.resume()

    def _on_fact(self, leg: Role, answer: GenerateChunk | DynamoError, now_s: float) -> None:
        try:
            if isinstance(answer, GenerateChunk):
                actions = self._flow.received(leg, answer, now_s)
                if answer.finish_reason is not None:
                    self._legs.cancel(leg)
            else:
                self._legs.cancel(leg)
                actions = self._flow.failed(leg, answer)
            self._carry_out(actions)
        except Exception as error:  # a bug ends this request, and not the connection it came through
            self._fail(error)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        """In order. Once the request is over, which the sink may decide in between, only what others must
        learn is still done."""
        for action in actions:
            match action:
                case Emit(chunk) if not self._is_over:
                    self._sink.on_chunk(chunk)
                    if chunk.finish_reason is not None:
                        self._is_over = True
                case Observe():
                    self._dispatcher.observe(self._route, action)
                case CancelLeg(leg):
                    self._legs.cancel(leg)
                case ReleaseBlocks(worker_id, request_id):
                    self._dispatcher.in_background(self._dispatcher.release(worker_id, request_id))
                case Send(leg, worker, leg_request) if not self._is_over:
                    self._legs.start(leg, partial(self._open, worker, leg_request), self._on_fact)
                case Route() if not self._is_over:
                    if action.can_wait and not self._dispatcher.eligible(self._flow.request, action):
                        self._waiting = asyncio.get_running_loop().create_task(self._wait(action))
                    elif not self._must_wait(action):
                        self._carry_out(self._dispatcher.choose(self._flow, self._route, action, self._hints))
                case Migrated(error, num_kept_tokens):
                    logger.warning(
                        "request %s starts again, %d tokens kept: %s",
                        self._flow.request.request_id, num_kept_tokens, error,
                    )  # fmt: skip
                    self._route.on_migration(num_kept_tokens)
                case Fail(error) if not self._is_over:
                    self._fail(error)
                case _:
                    assert self._is_over, f"unexpected {action}"

    def _open(self, worker: WorkerRecord, request: GenerateRequest, listener: CallListener) -> PushedCall:
        return self._dispatcher.open(worker, request, self._deadline_s, listener)

    def _must_wait(self, ask: Route) -> bool:
        """Whether all workers are full; then it goes on by itself when it is its turn, or has failed."""
        try:
            return self._dispatcher.admission.must_wait(
                self._route.name, ask, self._flow.request, self._hints, partial(self._go, ask)
            )
        except DynamoError as error:
            self._fail(error)
            return True

    def _go(self, ask: Route) -> None:
        try:
            self._carry_out(self._dispatcher.choose(self._flow, self._route, ask, self._hints))
        except Exception as error:  # a bug ends this request, and not those behind it
            self._fail(error)

    async def _wait(self, ask: Route) -> None:
        await self._dispatcher.wait_for_worker(self._flow.request, ask, self._deadline_s)
        self._waiting = None
        try:
            self._carry_out(self._dispatcher.choose(self._flow, self._route, ask, self._hints))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._is_over:
            self._end()
            asyncio.get_running_loop().call_soon(self._report, error)  # never from inside `generate`

    def _report(self, error: Exception) -> None:
        if self._is_wanted:
            self._sink.on_error(error)

    def _end(self) -> None:
        """Free everything."""
        self._is_over = True
        self._dispatcher.admission.leave(self._flow.request.request_id)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        self._carry_out(self._flow.cancel())
        self._legs.close()
