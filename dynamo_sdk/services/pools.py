"""Who can serve a model, and how busy each of them is: what routers choose from.

A pool is the ready workers of one model and role. The fleet says who is there, the load feeds how busy
each says it is, and this frontend's own requests how busy it has just been made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import Candidate, Fleet, RouterFact
from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.fleet import FleetView
from dynamo_sdk.types import Role, WorkerId, WorkerRecord

from .kv_feed import KVFeed

logger = logging.getLogger(__name__)

FEED_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Ready workers of one model and role, in a stable order, and what routers know of them."""

    workers: list[WorkerRecord]
    candidates: list[Candidate]
    by_id: dict[WorkerId, WorkerRecord]
    block_size: int | None


class Pools:
    """The workers behind a frontend's engine edges. ``clients``: service name -> client. ``has_overlaps``:
    some router looks at what workers hold, so their KV events are followed."""

    def __init__(
        self,
        fleet: FleetView,
        clients: dict[str, ServiceClient],
        clock: Clock,
        *,
        has_overlaps: bool = False,
    ) -> None:
        self._fleet = fleet
        self._clients = clients
        self._clock = clock
        self.events = KVFeed(PrefixIndex(), clock) if has_overlaps else None
        self.book = CandidateBook(
            self.events.index if self.events is not None else None, remembers_decisions=has_overlaps
        )
        self._pools: dict[tuple[str, Role], Pool] = {}  # until the fleet changes
        self._feeds: dict[WorkerId, asyncio.Task[None]] = {}
        self._news_listeners: list[Callable[[], None]] = []
        self._unsubscribe = fleet.subscribe(self._on_change)

    def pool(self, model: str, role: Role) -> Pool:
        """The same object until the fleet changes."""
        pool = self._pools.get((model, role))
        if pool is None:
            pool = self._pools[model, role] = self._find(model, role)
        return pool

    def workers(self, model: str, role: Role) -> list[WorkerRecord]:
        """Ready workers of this model and role, in a stable order: the same list until the fleet changes."""
        return self.pool(model, role).workers

    def _find(self, model: str, role: Role) -> Pool:
        workers = sorted(
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
        for record in workers:
            self._join(record)
        return Pool(
            workers=workers,
            candidates=self.candidates(workers),
            by_id={record.worker_id: record for record in workers},
            block_size=_block_size(workers[0], model) if workers else None,
        )

    def candidates(self, workers: list[WorkerRecord]) -> list[Candidate]:
        """What a router may know of them."""
        return self.book.candidates(record.worker_id for record in workers)

    def worker(self, worker_id: WorkerId) -> WorkerRecord | None:
        """Of any pool; None = not there."""
        return self._fleet.workers.get(worker_id)

    def client_of(self, worker: WorkerRecord) -> ServiceClient:
        return self._clients[worker.service]

    def all_workers(self) -> list[WorkerRecord]:
        """Every engine worker behind our edges, ready or not."""
        return [record for record in self._fleet.workers.values() if record.service in self._clients]

    def on_news(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever workers come and go, or say how busy they are; it must not block. What
        this returns ends it."""
        self._news_listeners.append(listener)

        def end() -> None:
            if listener in self._news_listeners:
                self._news_listeners.remove(listener)

        return end

    def observe(self, fact: RouterFact, now_s: float) -> None:
        """Count this frontend's own requests per worker."""
        self.book.observe(fact, now_s)

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
        if self.events is not None:
            await self.events.close()
        for feed in feeds:
            feed.cancel()
        if feeds:
            await asyncio.wait(feeds)

    def _on_change(self, fleet: Fleet) -> None:
        self._pools.clear()
        for worker_id in [known for known in self.book.workers if known not in fleet]:
            if self.events is not None:
                self.events.unfollow(worker_id)
            self.book.leave(worker_id)
        self._follow_feeds(fleet)
        self._tell_news()

    def _tell_news(self) -> None:
        for listener in list(self._news_listeners):
            listener()

    def _join(self, record: WorkerRecord) -> None:
        served = record.models[0] if record.models else None
        self.book.join(
            record.worker_id,
            pool=None if served is None else (served.name, record.role),
            dp_size=record.dp_size,
            block_size=served.block_size if served is not None else None,
            num_blocks=record.num_blocks,
            sharing=None if record.kv_address is None or served is None else served.name,
        )

    def _follow_feeds(self, fleet: Fleet) -> None:
        for worker_id in [w for w in self._feeds if w not in fleet]:
            self._feeds.pop(worker_id).cancel()
        for record in fleet.values():
            if record.is_ready and record.service in self._clients and record.worker_id not in self._feeds:
                self._join(record)
                if self.events is not None:
                    self.events.follow(
                        record.worker_id, self._clients[record.service], self.book.seats(record.worker_id)
                    )
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
                        self.book.reported(record.worker_id, load, self._clock.now_s())
                        self._tell_news()
            self.book.silent(record.worker_id)
            self._tell_news()
            await self._clock.sleep(FEED_RETRY_S)


def _block_size(worker: WorkerRecord, model: str) -> int | None:
    """Of the pool: workers of one model and role share it."""
    return next((served.block_size for served in worker.models if served.name == model), None)
