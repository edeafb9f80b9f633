"""Drives request flows: carries out what each flow asks, with the real router, sockets and clock.

The flow decides, this acts. One ``Dispatcher`` per frontend; a request is one async generator, so that
closing it (disconnect, time-out, shutdown) is the one way in which everything ends early.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from random import Random

from dynamo_sdk.errors import DynamoError, EngineFailed, Unavailable
from dynamo_sdk.flow import (
    Action,
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
from dynamo_sdk.interfaces import Router, RoutingContext, RoutingRequest
from dynamo_sdk.runtime.background import Background
from dynamo_sdk.runtime.calls import RemoteStream
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.types import GenerateChunk, GenerateRequest, Role, WorkerRecord

from .legs import Legs
from .pools import Pools

logger = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """``stall_timeout_s``: a leg that says nothing for so long is given up. ``wait_for_worker_s``: how
    long a request whose worker died waits for another one to appear."""

    stall_timeout_s: float = 120.0
    wait_for_worker_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class ModelRoute:
    """How requests of one model travel. ``routers``: one per pool, since they learn separately."""

    name: str
    config: FlowConfig
    routers: dict[Role, Router]
    on_migration: Callable[[int], None]


class Dispatcher:
    """Runs requests against the pools. All methods on one event loop."""

    def __init__(self, pools: Pools, clock: Clock, limits: DispatchLimits, rng: Random | None = None) -> None:
        self._pools = pools
        self._clock = clock
        self._limits = limits
        self._rng = rng or Random()
        self._background = Background()

    async def run(
        self, request: GenerateRequest, route: ModelRoute, deadline_s: float
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The request's chunks, whatever it takes until ``deadline_s`` of the clock. Raises the
        ``DynamoError`` that ends it."""
        flow = RequestFlow(request, route.config)
        legs = Legs(self._clock, self._limits.stall_timeout_s)
        actions: deque[Action] = deque(flow.start())
        try:
            while True:
                while actions:
                    match actions.popleft():
                        case Emit(chunk):
                            yield chunk
                            if chunk.finish_reason is not None:
                                return
                        case Route() as ask:
                            actions.extend(await self._route(flow, route, ask, deadline_s))
                        case Send(leg, worker, leg_request):
                            legs.start(leg, self._open(worker, leg_request, deadline_s))
                        case Migrated(error, num_kept_tokens):
                            logger.warning(
                                "request %s starts again, %d tokens kept: %s",
                                request.request_id, num_kept_tokens, error,
                            )  # fmt: skip
                            route.on_migration(num_kept_tokens)
                        case Fail(error):
                            raise error
                        case action:
                            await self._act(action, legs, route)
                leg, answer = await legs.next_fact()
                if isinstance(answer, GenerateChunk):
                    actions.extend(flow.received(leg, answer, self._clock.now_s()))
                    if answer.finish_reason is not None:
                        await legs.cancel(leg)
                else:
                    await legs.cancel(leg)
                    actions.extend(flow.failed(leg, answer))
        finally:
            for action in [*actions, *flow.cancel()]:
                if isinstance(action, Observe | CancelLeg | ReleaseBlocks):
                    await self._act(action, legs, route)
            await legs.close()

    async def close(self) -> None:
        await self._background.close()

    async def _act(self, action: Action, legs: Legs, route: ModelRoute) -> None:
        match action:
            case Observe(pool, fact):
                self._pools.observe(fact)
                try:
                    route.routers[pool].observe(fact)
                except (
                    Exception
                ):  # a router is somebody's plugin; the request does not depend on what it learns
                    logger.exception("router of model %s failed to learn", route.name)
            case CancelLeg(leg):
                await legs.cancel(leg)
            case ReleaseBlocks(worker_id, request_id):
                self._background.start(self._release(worker_id, request_id))
            case _:
                raise AssertionError(f"unexpected {action}")

    def _open(self, worker: WorkerRecord, request: GenerateRequest, deadline_s: float) -> RemoteStream:
        client = self._pools.client_of(worker)
        left_s = max(0.0, deadline_s - self._clock.now_s())
        return client.stream(worker.worker_id, "generate", request, timeout_s=left_s)

    async def _route(
        self, flow: RequestFlow, route: ModelRoute, ask: Route, deadline_s: float
    ) -> list[Action]:
        """Ask the pool's router; report what came of it."""

        def eligible() -> list[WorkerRecord]:
            workers = self._pools.workers(route.name, ask.pool)
            return [worker for worker in workers if worker.worker_id not in ask.excluded]

        workers = eligible()
        if not workers and ask.can_wait:
            wait_s = min(self._limits.wait_for_worker_s, deadline_s - self._clock.now_s())
            await self._pools.wait_for_worker(lambda: bool(eligible()), wait_s)
            workers = eligible()
        if not workers:
            return flow.not_routed(
                ask.pool,
                Unavailable(f"no {ask.pool} worker of model {route.name!r} can take the request now"),
            )
        request = flow.request
        try:
            decision = route.routers[ask.pool].select(
                RoutingRequest(
                    request_id=request.request_id,
                    model=request.model,
                    role=ask.pool,
                    num_tokens=ask.num_tokens,
                    block_size=_block_size(workers[0], route.name),
                    priority=request.priority,
                ),
                self._pools.candidates(workers),
                RoutingContext(now_s=self._clock.now_s(), rng=self._rng),
            )
        except DynamoError as error:
            return flow.not_routed(ask.pool, error)
        except Exception as error:  # a router is somebody's plugin
            logger.exception("router of model %s failed", route.name)
            return flow.not_routed(
                ask.pool, EngineFailed(f"the router failed: {type(error).__name__}: {error}")
            )
        chosen = next((worker for worker in workers if worker.worker_id == decision.worker_id), None)
        if chosen is None:
            stray = EngineFailed(f"the router chose {decision.worker_id!r}, which was not a candidate")
            return flow.not_routed(ask.pool, stray)
        dp_rank = decision.dp_rank if chosen.dp_size > 1 else None
        return flow.routed(ask.pool, chosen, self._clock.now_s(), dp_rank)

    async def _release(self, worker_id: str, request_id: str) -> None:
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


def _block_size(worker: WorkerRecord, model: str) -> int | None:
    """Of the pool: workers of one model and role share it."""
    return next((served.block_size for served in worker.models if served.name == model), None)
