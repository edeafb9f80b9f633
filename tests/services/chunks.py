"""A pushed request as an async generator, and an async generator as a pushed request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from dynamo_sdk.services.openai import BackendCall, ChunkSink
from dynamo_sdk.types import GenerateChunk


class Collected(ChunkSink):
    """What a sink was told, in order."""

    def __init__(self) -> None:
        self.facts: deque[GenerateChunk | Exception] = deque()
        self.changed = asyncio.Event()

    def on_chunk(self, chunk: GenerateChunk) -> None:
        self.facts.append(chunk)
        self.changed.set()

    def on_error(self, error: Exception) -> None:
        self.facts.append(error)
        self.changed.set()


async def chunks_of(start: Callable[[ChunkSink], BackendCall]) -> AsyncGenerator[GenerateChunk, None]:
    """Closing it cancels the call."""
    sink = Collected()
    call = start(sink)
    assert not sink.facts, "the sink was told something before the call was there"
    try:
        while True:
            while not sink.facts:
                sink.changed.clear()
                await sink.changed.wait()
            fact = sink.facts.popleft()
            if isinstance(fact, Exception):
                raise fact
            yield fact
            if fact.finish_reason is not None:
                assert not sink.facts, "something came after the last chunk"
                return
    finally:
        call.cancel()


class PumpedCall(BackendCall):
    """Gives a sink what a generator yields. ``on_end`` is called once, when it is over or cancelled."""

    def __init__(
        self, chunks: AsyncGenerator[GenerateChunk, None], sink: ChunkSink, *, on_end: Callable[[], None]
    ) -> None:
        self._sink = sink
        self._on_end = on_end
        self._is_over = False
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._task = asyncio.get_running_loop().create_task(self._pump(chunks))

    async def _pump(self, chunks: AsyncGenerator[GenerateChunk, None]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._may_run.wait()
                    self._sink.on_chunk(chunk)
                    if self._is_over:
                        return
            self._end()
        except Exception as error:
            if not self._is_over:
                self._end()
                self._sink.on_error(error)

    def _end(self) -> None:
        self._is_over = True
        self._on_end()

    def cancel(self) -> None:
        if not self._is_over:
            self._end()
            if asyncio.current_task() is not self._task:
                self._task.cancel()

    def pause(self) -> None:
        self._may_run.clear()

    def resume(self) -> None:
        self._may_run.set()
