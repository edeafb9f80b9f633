"""``KVFeed``: the KV events of the workers that a frontend follows, into its index.

A task per worker reads the worker's ``kv_events`` and tells each batch to the ``EventCursor`` of its seat.
When the connection ends it is opened again and goes on where it was; what the index holds of the worker stays
meanwhile, because most of it is still true. Whoever owns the seats drops them when a worker is gone for good.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from dynamo_sdk.errors import DynamoError, RequestError
from dynamo_sdk.kv import AskSnapshot, EventCursor, PrefixIndex, Replace
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.types import KVDigest, KVDigestBatch, WorkerId

logger = logging.getLogger(__name__)

FEED_RETRY_S = 1.0
MAX_FEED_RETRY_S = 16.0
QUIET_S = 60.0
"""A worker that needed nothing for so long is served at once again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVFeedStatistics:
    """Of one worker. ``is_live``: its events arrive, and the index holds what it said; a worker that
    ``publishes`` none never is. ``last_batch_at_s``: by the frontend's clock; None = nothing has come yet.
    ``num_misfits``: events that the index could not place or did not know."""

    publishes: bool
    is_live: bool
    last_batch_at_s: float | None
    num_batches: int
    num_misfits: int
    num_duplicates: int
    num_gaps: int
    num_snapshots: int
    num_restarts: int
    num_breaks: int


class _Pace:
    """How long to wait before a worker is asked again, each time longer: a snapshot is dear to who makes it.
    ``is_prompt``: not at all the first time."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._last_s = -math.inf

    def next_pause_s(self, now_s: float, *, is_prompt: bool) -> float:
        if now_s - self._last_s > QUIET_S:
            self._next_s = 0.0
        pause_s = self._next_s or (0.0 if is_prompt else FEED_RETRY_S)
        self._next_s = min(MAX_FEED_RETRY_S, 2 * pause_s or FEED_RETRY_S)
        self._last_s = now_s + pause_s
        return pause_s


@dataclass(slots=True)
class _Followed:
    """``seats`` by rank."""

    worker_id: WorkerId
    client: ServiceClient
    seats: Sequence[int]
    cursors: dict[int, EventCursor] = field(default_factory=dict)
    pace: _Pace = field(default_factory=_Pace)
    task: asyncio.Task[None] | None = None
    listener: Callable[[int, KVDigest], None] | None = None
    publishes: bool = True
    last_batch_at_s: float | None = None
    is_connected: bool = False
    num_batches: int = 0
    num_misfits: int = 0
    num_breaks: int = 0

    @property
    def is_live(self) -> bool:
        """Every rank's state has arrived, and none waits for a snapshot."""
        cursors = self.cursors.values()
        return (
            self.is_connected
            and len(cursors) == len(self.seats)
            and all(cursor.is_live for cursor in cursors)
        )


class KVFeed:
    """One event loop only. ``index`` may be fed by others as well, for other seats."""

    def __init__(self, index: PrefixIndex, clock: Clock) -> None:
        self.index = index
        self._clock = clock
        self._followed: dict[WorkerId, _Followed] = {}

    def follow(self, worker_id: WorkerId, client: ServiceClient, seats: Sequence[int]) -> None:
        """Read a worker's events from now on; its rank ``i`` has ``seats[i]``. Again: nothing."""
        if worker_id not in self._followed:
            followed = self._followed[worker_id] = _Followed(worker_id, client, seats)
            followed.task = asyncio.get_running_loop().create_task(self._read(followed))

    def unfollow(self, worker_id: WorkerId) -> None:
        """Nothing of this worker reaches the index any more, from this moment on."""
        followed = self._followed.pop(worker_id, None)
        if followed is not None and followed.task is not None:
            followed.task.cancel()

    def listen(self, worker_id: WorkerId, listener: Callable[[int, KVDigest], None] | None) -> None:
        """Tell ``listener`` the rank and each event of this worker, once it is in the index; None = nobody.
        There is one at most."""
        followed = self._followed.get(worker_id)
        if followed is not None:
            followed.listener = listener

    def statistics(self) -> dict[WorkerId, KVFeedStatistics]:
        return {worker_id: _statistics(followed) for worker_id, followed in self._followed.items()}

    async def close(self) -> None:
        """Follow nobody. Idempotent."""
        tasks = [followed.task for followed in self._followed.values() if followed.task is not None]
        for worker_id in list(self._followed):
            self.unfollow(worker_id)
        if tasks:
            await asyncio.wait(tasks)

    async def _read(self, followed: _Followed) -> None:
        """Until the worker is unfollowed, or says that it has no events."""
        while followed.publishes:
            try:
                await self._read_once(followed)
            except RequestError as error:
                followed.publishes = followed.is_connected = False
                logger.info("no KV events from %s: %s", followed.worker_id, error)
                return
            except DynamoError as error:
                logger.info("the KV events of %s broke off: %s", followed.worker_id, error)
            except Exception:  # a bug: begin anew, for nobody knows how much of the batch was taken
                logger.exception("the KV events of %s could not be read", followed.worker_id)
                followed.cursors.clear()
            followed.is_connected = False
            followed.num_breaks += 1
            await self._rest(followed, is_prompt=False)

    async def _rest(self, followed: _Followed, *, is_prompt: bool) -> None:
        pause_s = followed.pace.next_pause_s(self._clock.now_s(), is_prompt=is_prompt)
        if pause_s:
            await self._clock.sleep(pause_s)

    async def _read_once(self, followed: _Followed) -> None:
        """One connection's worth of events; several when a snapshot must be asked for."""
        while True:
            seen = {rank: cursor.last for rank, cursor in followed.cursors.items() if cursor.is_live}
            stream = followed.client.stream(followed.worker_id, "kv_events", seen, timeout_s=None)
            async with aclosing(stream) as batches:
                async for batch in batches:
                    followed.is_connected = True
                    if self._take(followed, batch):
                        break
                else:
                    return
            await self._rest(followed, is_prompt=True)

    def _take(self, followed: _Followed, batch: KVDigestBatch) -> bool:
        """Whether a snapshot is needed: the stream has to be opened anew, without that rank's number."""
        if self._followed.get(followed.worker_id) is not followed or batch.dp_rank >= len(followed.seats):
            return False
        followed.num_batches += 1
        followed.last_batch_at_s = self._clock.now_s()
        seat = followed.seats[batch.dp_rank]
        cursor = followed.cursors.setdefault(batch.dp_rank, EventCursor())
        asks = False
        for action in cursor.receive(batch):
            if isinstance(action, AskSnapshot):
                asks = True
                continue
            if isinstance(action, Replace):
                self.index.clear(seat)
            for event in action.digests:
                try:
                    followed.num_misfits += not self.index.apply(seat, event)
                except ValueError:  # names and hashes that do not fit together
                    followed.num_misfits += 1
                if followed.listener is not None:
                    followed.listener(batch.dp_rank, event)
        return asks


def _statistics(followed: _Followed) -> KVFeedStatistics:
    cursors = followed.cursors.values()
    return KVFeedStatistics(
        publishes=followed.publishes,
        is_live=followed.is_live,
        last_batch_at_s=followed.last_batch_at_s,
        num_batches=followed.num_batches,
        num_misfits=followed.num_misfits,
        num_duplicates=sum(cursor.num_duplicates for cursor in cursors),
        num_gaps=sum(cursor.num_gaps for cursor in cursors),
        num_snapshots=sum(cursor.num_snapshots for cursor in cursors),
        num_restarts=sum(cursor.num_restarts for cursor in cursors),
        num_breaks=followed.num_breaks,
    )
