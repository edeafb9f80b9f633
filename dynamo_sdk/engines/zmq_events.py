"""KV events from an engine that publishes them over ZeroMQ, as vLLM and SGLang do; with replay.

::

    PUB     [topic, number, events]                        one socket per data-parallel rank
    ROUTER  asked with ["", first number], answers ["", topic, number, events] ..., the last with number -1
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import zmq
import zmq.asyncio

from dynamo_sdk.kv.engine_events import FeedStep, ZmqEventFeed
from dynamo_sdk.types import KVEventBatch

_log = logging.getLogger(__name__)

REPLAY_TIMEOUT_S = 5.0
"""Publishers look for questions ten times a second where they have nothing to publish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventEndpoints:
    """Where one rank publishes. ``replay`` None: what is missed is lost."""

    dp_rank: int
    publisher: str
    replay: str | None = None


class ZmqEventSource:
    """Reads from ``start`` until ``close`` and calls ``listener`` on the event loop, batch by batch."""

    def __init__(
        self,
        endpoints: Iterable[EventEndpoints],
        listener: Callable[[KVEventBatch], None],
        *,
        topic: str = "",
        block_size: int | None = None,
    ) -> None:
        self._listener = listener
        self._topic = topic
        self._feeds = [
            (endpoint, ZmqEventFeed(dp_rank=endpoint.dp_rank, block_size=block_size))
            for endpoint in endpoints
        ]
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Connect, and ask for what was published before."""
        self._context = zmq.asyncio.Context()
        for endpoint, feed in self._feeds:
            reading = self._read(self._context, endpoint, feed)
            self._tasks.append(asyncio.create_task(reading, name=f"kv-events-{endpoint.dp_rank}"))

    async def close(self) -> None:
        """Idempotent; also without a start."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        context, self._context = self._context, None
        if context is not None:
            context.destroy(linger=0)

    def snapshot(self) -> tuple[KVEventBatch, ...]:
        """What all batches so far have built, one per rank."""
        return tuple(feed.snapshot() for _, feed in self._feeds)

    async def _read(self, context: zmq.asyncio.Context, endpoint: EventEndpoints, feed: ZmqEventFeed) -> None:
        with context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVHWM, 0)  # what is dropped here would only be asked for again
            socket.setsockopt_string(zmq.SUBSCRIBE, self._topic)
            socket.connect(endpoint.publisher)
            await self._replay(context, endpoint, feed, 0)
            while True:
                step = self._take(feed, await socket.recv_multipart())
                if step.ask_from is not None:
                    await self._replay(context, endpoint, feed, step.ask_from)

    async def _replay(
        self, context: zmq.asyncio.Context, endpoint: EventEndpoints, feed: ZmqEventFeed, first: int
    ) -> None:
        """Ask for what is missing from ``first`` on."""
        if endpoint.replay is not None:
            try:
                async with asyncio.timeout(REPLAY_TIMEOUT_S):
                    await self._ask(context, endpoint.replay, feed, first)
            except TimeoutError:
                _log.warning("no replay of KV events from %s", endpoint.replay)
        for batch in feed.replayed():
            self._listener(batch)

    async def _ask(self, context: zmq.asyncio.Context, replay: str, feed: ZmqEventFeed, first: int) -> None:
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(replay)
            await socket.send_multipart([b"", first.to_bytes(8, "big")])
            while True:
                _, *frames = await socket.recv_multipart()
                if int.from_bytes(frames[1], "big", signed=True) < 0:
                    return
                self._take(feed, frames, is_replay=True)

    def _take(self, feed: ZmqEventFeed, frames: Sequence[bytes], *, is_replay: bool = False) -> FeedStep:
        try:
            step = feed.receive(frames, is_replay=is_replay)
        except ValueError as error:
            _log.warning("an engine's message is left out: %s", error)
            return FeedStep()
        for batch in step.batches:
            self._listener(batch)
        return step
