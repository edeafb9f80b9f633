"""Who can serve a model, and how busy each of them is: what routers choose from.

A pool is the ready workers of one model and role. The fleet says who is there, the load feeds how busy
each says it is, and this frontend's own requests how busy it has just been made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import aclosing

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import Candidate, Fleet, Freed, Routed, RouterFact
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.types import LoadSnapshot, Role, WorkerId, WorkerRecord

logger = logging.getLogger(__name__)

FEED_RETRY_S = 1.0


class Pools:
    """The workers behind a frontend's engine edges. ``clients``: service name -> client."""

    def __init__(self, fleet: FleetView, clients: dict[str, ServiceClient], clock: Clock) -> None:
        self._fleet = fleet
        self._clients = clients
        self._clock = clock
        self._pools: dict[tuple[str, Role], list[WorkerRecord]] = {}  # until the fleet changes
        self._num_active: defaultdict[WorkerId, int] = defaultdict(int)
        self._loads: dict[WorkerId, tuple[LoadSnapshot, float]] = {}
        self._feeds: dict[WorkerId, asyncio.Task[None]] = {}
        self._unsubscribe = fleet.subscribe(self._on_change)

    def workers(self, model: str, role: Role) -> list[WorkerRecord]:
        """Ready workers of this model and role, in a stable order: the same list until the fleet changes."""
        pool = self._pools.get((model, role))
        if pool is None:
            pool = self._pools[model, role] = self._find(model, role)
        return pool

    def _find(self, model: str, role: Role) -> list[WorkerRecord]:
        return sorted(
            (
                record
                for record in self._fleet.workers.values()
                if record.is_ready
                and record.role is role
                and record.service in self._clients
                and any(served.name == model for served in record.models)
            ),
            key=lambda record: record.worker_id,
        )

    def candidates(self, workers: list[WorkerRecord]) -> list[Candidate]:
        """What a router may know of them."""
        now_s = self._clock.now_s()
        found: list[Candidate] = []
        for record in workers:
            load, at_s = self._loads.get(record.worker_id, (None, now_s))
            found += [
                Candidate(
                    worker_id=record.worker_id,
                    dp_rank=rank,
                    num_active_requests=self._num_active.get(record.worker_id, 0),
                    load=load,
                    load_age_s=None if load is None else now_s - at_s,
                )
                for rank in range(record.dp_size)
            ]
        return found

    def client_of(self, worker: WorkerRecord) -> ServiceClient:
        return self._clients[worker.service]

    def all_workers(self) -> list[WorkerRecord]:
        """Every engine worker behind our edges, ready or not."""
        return [record for record in self._fleet.workers.values() if record.service in self._clients]

    def observe(self, fact: RouterFact) -> None:
        """Count this frontend's own requests per worker."""
        if isinstance(fact, Routed):
            self._num_active[fact.worker_id] += 1
        elif isinstance(fact, Freed):
            self._num_active[fact.worker_id] -= 1
            if self._num_active[fact.worker_id] <= 0:
                del self._num_active[fact.worker_id]

    async def wait_for_worker(self, is_met: Callable[[], bool], timeout_s: float) -> bool:
        """Whether ``is_met`` came true, judged after each change of the fleet."""
        waiting = asyncio.get_running_loop().create_task(self._fleet.wait_until(lambda _fleet: is_met()))
        try:
            await self._clock.wait(waiting, self._clock.now_s() + timeout_s)
            return waiting.done()
        finally:
            waiting.cancel()

    async def close(self) -> None:
        self._unsubscribe()
        feeds, self._feeds = list(self._feeds.values()), {}
        for feed in feeds:
            feed.cancel()
        if feeds:
            await asyncio.wait(feeds)

    def _on_change(self, fleet: Fleet) -> None:
        self._pools.clear()
        self._follow_feeds(fleet)

    def _follow_feeds(self, fleet: Fleet) -> None:
        for worker_id in [w for w in self._feeds if w not in fleet]:
            self._feeds.pop(worker_id).cancel()
            self._loads.pop(worker_id, None)
        for record in fleet.values():
            if record.is_ready and record.service in self._clients and record.worker_id not in self._feeds:
                self._feeds[record.worker_id] = asyncio.get_running_loop().create_task(
                    self._read_loads(record)
                )

    async def _read_loads(self, record: WorkerRecord) -> None:
        """Until the worker is gone; one without news, for a while, is routed to without them."""
        client = self._clients[record.service]
        while True:
            with contextlib.suppress(DynamoError):
                async with aclosing(client.stream(record.worker_id, "loads", timeout_s=None)) as loads:
                    async for load in loads:
                        self._loads[record.worker_id] = (load, self._clock.now_s())
            self._loads.pop(record.worker_id, None)
            await self._clock.sleep(FEED_RETRY_S)
