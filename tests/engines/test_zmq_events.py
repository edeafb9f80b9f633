"""A real publisher, in the test's own process, over Unix sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from dynamo_sdk.engines.zmq_events import EventEndpoints, ZmqEventSource
from dynamo_sdk.types import BlocksStored, KVEventBatch

pytestmark = pytest.mark.anyio


class Publisher:
    """Publishes as vLLM does, and answers questions for what it said before."""

    def __init__(self, folder: Path) -> None:
        self.endpoints = EventEndpoints(
            dp_rank=0, publisher=f"ipc://{folder}/events", replay=f"ipc://{folder}/replay"
        )
        self.num_asked = 0
        self._said: list[list[bytes]] = []
        self._context = zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.XPUB)  # a PUB that tells who subscribes
        self._router = self._context.socket(zmq.ROUTER)
        self._task: asyncio.Task[None] | None = None

    def bind(self) -> None:
        assert self.endpoints.replay is not None
        self._pub.bind(self.endpoints.publisher)
        self._router.bind(self.endpoints.replay)
        self._task = asyncio.create_task(self._answer())

    async def wait_subscribed(self) -> None:
        """What is published before is not delivered: a subscription takes its time after `connect`."""
        await self._pub.recv()

    async def say(self, name: int, *, is_lost: bool = False) -> None:
        event = {"type": "BlockStored", "block_hashes": [name], "token_ids": [name, name], "block_size": 2}
        number = len(self._said).to_bytes(8, "big")
        self._said.append([b"kv", number, msgspec.msgpack.encode([1.0, [event], 0])])
        if not is_lost:
            await self._pub.send_multipart(self._said[-1])

    async def _answer(self) -> None:
        while True:
            caller, _, first = await self._router.recv_multipart()
            self.num_asked += 1
            for frames in self._said[int.from_bytes(first, "big") :]:
                await self._router.send_multipart([caller, b"", *frames])
            end = (-1).to_bytes(8, "big", signed=True)
            await self._router.send_multipart([caller, b"", b"", end, b""])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)


class Listener:
    def __init__(self) -> None:
        self.names: list[int | bytes] = []
        self._changed = asyncio.Event()

    def __call__(self, batch: KVEventBatch) -> None:
        for event in batch.events:
            assert isinstance(event, BlocksStored)
            self.names += event.block_hashes
        self._changed.set()

    async def wait_for(self, *names: int) -> None:
        while self.names != list(names):
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def publishing(folder: Path) -> AsyncIterator[tuple[Publisher, ZmqEventSource, Listener]]:
    publisher, listener = Publisher(folder), Listener()
    source = ZmqEventSource([publisher.endpoints], listener)
    publisher.bind()
    try:
        yield publisher, source, listener
    finally:
        await source.close()
        await publisher.close()


async def test_what_was_said_before_and_what_is_lost_comes_by_replay(tmp_path: Path):
    async with publishing(tmp_path) as (publisher, source, listener):
        await publisher.say(1)
        await publisher.say(2)
        source.start()
        await listener.wait_for(1, 2)
        await publisher.wait_subscribed()
        await publisher.say(3)
        await listener.wait_for(1, 2, 3)
        assert publisher.num_asked == 1, "nothing was missing"
        await publisher.say(4, is_lost=True)
        await publisher.say(5)
        await listener.wait_for(1, 2, 3, 4, 5)
        assert publisher.num_asked == 2
        (snapshot,) = source.snapshot()
        assert snapshot.sequence == 4
        assert len(snapshot.events) == 5


async def test_close_is_idempotent_and_needs_no_start(tmp_path: Path):
    async with publishing(tmp_path) as (_, source, _):
        await source.close()
        source.start()
        await source.close()
        await source.close()
