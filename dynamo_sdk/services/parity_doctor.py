"""The parity doctor: does what each worker says of its cache agree with what routers look up?

Once per model of each worker whose router looks at overlaps: a few short prompts go through the legs of real
requests to that worker, and the keys that were predicted for them are looked for in the index, where the
worker's KV events should bring them. What ``kv.parity`` makes of it is in ``/health``, a line of the log and
a metric. A worker that did not answer, because it is busy, is asked again later.

One prompt at a time, after all requests of clients in the engine's order, and each with a deadline. They are
sent past admission and the decision log, and routers do not learn of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from dynamo_sdk.errors import DynamoError, Unavailable
from dynamo_sdk.interfaces import Candidate, Router, RoutingContext, RoutingDecision, RoutingRequest
from dynamo_sdk.kv.parity import ParityProbe, ParityReport, ProbeFinding, Verdict, diagnose
from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.preprocess import ModelPipeline
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.types import (
    GenerateRequest,
    KVDigest,
    ModelRecord,
    PackedTokens,
    Role,
    SamplingParams,
    StoredDigest,
    WorkerId,
    WorkerRecord,
)

from .dispatch import Dispatcher, ModelRoute
from .kv_feed import KVFeed
from .openai.backend import run_to_end
from .parity_probes import make_probes
from .pools import Pools

logger = logging.getLogger(__name__)

LIVE_TIMEOUT_S = 10.0
LIVE_POLL_S = 0.1
PROBE_TIMEOUT_S = 30.0
EVENT_TIMEOUT_S = 5.0
RETRY_S = 60.0
MAX_RETRY_S = 960.0
PRIORITY = 1_000_000
MAX_EVENTS_KEPT = 65_536

PipelineOf = Callable[[ModelRecord], Awaitable[ModelPipeline]]
_Key = tuple[str, WorkerId]
"""A model, and a worker that serves it."""


@dataclass(frozen=True, slots=True)
class _Retry:
    at_s: float
    pause_s: float


class ParityDoctor:
    """``dispatcher``: one of its own. ``start`` once there is a loop; ``close`` at the end."""

    def __init__(
        self,
        fleet: FleetView,
        pools: Pools,
        events: KVFeed,
        dispatcher: Dispatcher,
        routes: Mapping[str, ModelRoute],
        clock: Clock,
        metrics: FrontendMetrics,
        rng: Random,
    ) -> None:
        self._fleet = fleet
        self._pools = pools
        self._events = events
        self._dispatcher = dispatcher
        self._routes = routes
        self._clock = clock
        self._metrics = metrics
        self._rng = rng
        self._num_probes = self._num_unanswered = 0
        self._task: asyncio.Task[None] | None = None
        self.reports: dict[_Key, ParityReport] = {}
        self._retries: dict[_Key, _Retry] = {}

    def start(self, pipeline_of: PipelineOf) -> None:
        """Check each worker that is there, and each that comes. Again: nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._check_all(pipeline_of))

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._dispatcher.close()

    def describe(self, model: str) -> str:
        """For ``/health``: how many of the model's workers are right, and what is wrong with others.
        Empty where routers do not look at overlaps."""
        if not any(router.uses_overlap for router in self._routes[model].routers.values()):
            return ""
        workers = [worker.worker_id for route, worker in self._workers() if route.name == model]
        reports = {name: self.reports[model, name] for name in workers if (model, name) in self.reports}
        num_ok = sum(report.verdict is Verdict.OK for report in reports.values())
        text = f"block keys as predicted on {num_ok} of {len(workers)} workers"
        if len(reports) < len(workers):
            text += f" ({len(workers) - len(reports)} not checked yet)"
        for name, report in reports.items():
            if report.verdict is not Verdict.OK:
                text += f"; {name}: {report.verdict}, {report.describe()}"
        return text

    def is_misled(self, worker_id: WorkerId) -> bool:
        """Whether what the index holds of this worker is known to be of no use, for any of its models."""
        return any(report.is_misleading for (_, name), report in self.reports.items() if name == worker_id)

    # -- which workers

    async def _check_all(self, pipeline_of: PipelineOf) -> None:
        while True:
            while not (due := self._due()):
                await self._wait_for_work()
            route, worker = due[0]
            key = (route.name, worker.worker_id)
            self._num_unanswered = 0
            try:
                report = await self._check(route, worker, pipeline_of)
            except Exception as error:  # a frontend serves without this
                if worker.worker_id in self._fleet.workers:
                    logger.exception("the block keys of %s could not be checked", worker.worker_id)
                report = ParityReport((_unknown("-", f"{type(error).__name__}: {error}"),))
            if worker.worker_id in self._fleet.workers:
                self._tell(key, report)
                self._plan_retry(key)
            for key in [known for known in self.reports if known[1] not in self._fleet.workers]:
                del self.reports[key]
                self._retries.pop(key, None)

    async def _wait_for_work(self) -> None:
        """Until the fleet changes so that there is somebody to check, or it is time to ask somebody again."""
        waiting = asyncio.get_running_loop().create_task(self._fleet.wait_until(lambda _: bool(self._due())))
        now_s = self._clock.now_s()  # what is due already waits for its worker to be ready again
        next_s = min((retry.at_s for retry in self._retries.values() if retry.at_s > now_s), default=None)
        try:
            if next_s is None:
                await waiting
            else:
                await self._clock.wait(waiting, next_s)
        finally:
            waiting.cancel()

    def _plan_retry(self, key: _Key) -> None:
        """Where a probe was not answered: each time later."""
        before = self._retries.pop(key, None)
        if self._num_unanswered:
            pause_s = RETRY_S if before is None else min(2 * before.pause_s, MAX_RETRY_S)
            self._retries[key] = _Retry(self._clock.now_s() + pause_s, pause_s)

    def _workers(self) -> list[tuple[ModelRoute, WorkerRecord]]:
        """Those whose router looks at what they hold."""
        return [
            (route, worker)
            for route in self._routes.values()
            for role, router in route.routers.items()
            if router.uses_overlap
            for worker in self._pools.workers(route.name, role)
        ]

    def _due(self) -> list[tuple[ModelRoute, WorkerRecord]]:
        """Those that were never checked first."""
        now_s = self._clock.now_s()
        keys = {(route.name, worker.worker_id): (route, worker) for route, worker in self._workers()}
        new = [found for key, found in keys.items() if key not in self.reports]
        late = {key for key, retry in self._retries.items() if retry.at_s <= now_s}
        return new or [found for key, found in keys.items() if key in late]

    def _tell(self, key: _Key, report: ParityReport) -> None:
        before, self.reports[key] = self.reports.get(key), report
        if report == before:
            return
        model, worker_id = key
        self._metrics.count_parity_check(model=model, verdict=report.verdict.value)
        if not self._is_mute(worker_id):  # which is no fault, and was said when its events were asked for
            level = logging.INFO if report.verdict is Verdict.OK else logging.WARNING
            logger.log(level, "parity of %s: %s; %s", worker_id, report.verdict, report.describe())

    def _is_mute(self, worker_id: WorkerId) -> bool:
        """It has said that it publishes no events, or it is gone."""
        feed = self._events.statistics().get(worker_id)
        return feed is None or not feed.publishes

    # -- one worker

    async def _check(self, route: ModelRoute, worker: WorkerRecord, pipeline_of: PipelineOf) -> ParityReport:
        served = next(model for model in worker.models if model.name == route.name)
        if not await self._is_heard(worker.worker_id) or served.block_size is None:
            self._num_unanswered += served.block_size is not None and not self._is_mute(worker.worker_id)
            text = "the worker publishes no KV events" if served.block_size else "the engine has no KV blocks"
            return ParityReport((ProbeFinding(probe="-", verdict=Verdict.NO_EVENTS, text=text),))
        adapters = [model.name for model in worker.models if model.parent == route.name]
        probes = await make_probes(
            await pipeline_of(served),
            served.block_size,
            num_texts=worker.dp_size,
            adapter=adapters[0] if adapters else None,
            num_new_tokens=2 if worker.role is Role.DECODE else 1,  # one token never leaves the prefill leg
            rng=self._rng,
        )
        if not probes:
            return ParityReport((_unknown("-", "no prompt that fills a block fits into the context"),))
        findings = [
            await self._try(probe, index if index < worker.dp_size else 0, route, worker, served.block_size)
            for index, probe in enumerate(probes)
        ]
        return ParityReport(tuple(findings))

    async def _is_heard(self, worker_id: WorkerId) -> bool:
        """Whether the worker's stream of events has begun; there is some time for it."""
        until_s = self._clock.now_s() + LIVE_TIMEOUT_S
        while (feed := self._events.statistics().get(worker_id)) is not None and feed.publishes:
            if feed.is_live:
                return True
            if self._clock.now_s() >= until_s:
                return False
            await self._clock.sleep(LIVE_POLL_S)
        return False

    async def _try(
        self, probe: ParityProbe, rank: int, route: ModelRoute, worker: WorkerRecord, block_size: int
    ) -> ProbeFinding:
        """Send one probe and see what comes of it."""
        watch = _Watch(self._events, probe, block_size, rank, self._pools.book.seats(worker.worker_id)[rank])
        self._events.listen(worker.worker_id, watch.see)
        try:
            await self._send(probe, rank, route, worker)
            await self._clock.wait(watch.has_all, self._clock.now_s() + EVENT_TIMEOUT_S)
        except DynamoError as error:
            self._num_unanswered += 1
            return _unknown(probe.name, f"the engine did not answer: {error}")
        finally:
            self._events.listen(worker.worker_id, None)
        return diagnose(probe, block_size, num_held=watch.num_held, stored=watch.stored)

    async def _send(self, probe: ParityProbe, rank: int, route: ModelRoute, worker: WorkerRecord) -> None:
        """Raises what ended the request."""
        self._num_probes += 1
        request = GenerateRequest(
            request_id=f"parity-{self._rng.getrandbits(64):016x}-{self._num_probes}",
            model=route.name,
            prompt=PackedTokens(probe.tokens),
            sampling=SamplingParams(max_tokens=probe.num_new_tokens, temperature=0.0, ignore_eos=True),
            lora=probe.lora,
            cache_salt=probe.cache_salt,
            priority=PRIORITY,
        )
        assert worker.role is not None
        pinned = _Pinned(worker.worker_id, rank, worker.role)
        pinned_route = ModelRoute(
            name=route.name,
            config=route.config,
            routers=dict.fromkeys(route.routers, pinned),
            on_migration=route.on_migration,
        )
        deadline_s = self._clock.now_s() + PROBE_TIMEOUT_S
        await run_to_end(partial(self._dispatcher.start, request, pinned_route, deadline_s))


class _Watch:
    """What one rank reports while a probe is under way."""

    def __init__(self, events: KVFeed, probe: ParityProbe, block_size: int, rank: int, seat: int) -> None:
        self._index = events.index
        self._keys = probe.keys(block_size)
        self._rank = rank
        self._seat = seat
        self.num_held = 0
        self.stored: deque[StoredDigest] = deque(maxlen=MAX_EVENTS_KEPT)
        self.has_all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def see(self, rank: int, event: KVDigest) -> None:
        if rank != self._rank or not isinstance(event, StoredDigest):
            return
        self.stored.append(event)
        overlap = self._index.match(self._keys).get(self._seat)
        if overlap is not None:  # the most there ever was: blocks may be evicted at once
            self.num_held = max(self.num_held, overlap.num_blocks)
        if self.num_held >= len(self._keys) and not self.has_all.done():
            self.has_all.set_result(None)


class _Pinned(Router):
    """The one worker in its own role; anybody in another. ``rank`` is of the one worker."""

    def __init__(self, worker_id: WorkerId, rank: int, role: Role) -> None:
        self._worker_id = worker_id
        self._rank = rank
        self._role = role

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        if request.role is not self._role:
            anybody = context.rng.choice(candidates)
            return RoutingDecision(worker_id=anybody.worker_id, dp_rank=anybody.dp_rank)
        for candidate in candidates:
            if candidate.worker_id == self._worker_id and candidate.dp_rank == self._rank:
                return RoutingDecision(worker_id=self._worker_id, dp_rank=self._rank)
        raise Unavailable(f"worker {self._worker_id!r} cannot take the request")


def _unknown(probe: str, text: str) -> ProbeFinding:
    return ProbeFinding(probe=probe, verdict=Verdict.UNKNOWN, text=text)
