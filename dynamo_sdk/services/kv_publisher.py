"""``KVPublisher``: an engine's KV events for every frontend that follows the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from dynamo_sdk.interfaces import PublishesKVEvents
from dynamo_sdk.kv import EventLog
from dynamo_sdk.types import KVDigestBatch, KVEventBatch


class KVPublisher:
    """Listens to the engine from the first reader on; before, the engine need not even make events.

    A reader has no queue here. It knows up to which number it has sent each rank's batches and takes what the
    log has after them; one that is too slow for the log gets a snapshot.
    """

    def __init__(self, engine: PublishesKVEvents) -> None:
        self._engine = engine
        self._log: EventLog | None = None
        self._takes_snapshot = False
        self._waiting: set[asyncio.Future[None]] = set()

    async def follow(self, seen: Mapping[int, int]) -> AsyncGenerator[KVDigestBatch, None]:
        """What is missing after the batches ``seen`` (number of the last one by rank), then every batch.
        Something comes at once for each rank, if only an empty batch: so the reader knows where it is."""
        log = self._begin()
        sent = dict(seen)
        lacking = log.after(sent)
        for rank in log.ranks - {batch.dp_rank for batch in lacking}:
            yield KVDigestBatch(sequence=sent[rank], dp_rank=rank, digests=())
        while True:
            for batch in lacking:
                sent[batch.dp_rank] = batch.sequence
                yield batch
            while not (lacking := log.after(sent)):
                await self._next_batch()

    def _begin(self) -> EventLog:
        if self._log is None:
            self._engine.subscribe_kv_events(self._on_batch)
            self._log = EventLog()
            self._take_snapshot(self._log)
        return self._log

    def _take_snapshot(self, log: EventLog) -> None:
        self._takes_snapshot = True
        try:
            log.begin(self._engine.kv_snapshot())
        finally:
            self._takes_snapshot = False

    def _on_batch(self, batch: KVEventBatch) -> None:
        if self._log is None or self._takes_snapshot:
            return  # said while the snapshot is taken, and part of it
        if not self._log.append(batch):
            self._take_snapshot(self._log)
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _next_batch(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
