"""The legs that a request has under way: usually one, two at a rendezvous.

The one leg of the usual case is read in place, without a task or a queue between the socket and the
client; only two legs at once need tasks. A leg that says nothing for ``stall_timeout_s`` is given up, so
that a worker that hangs costs its requests a retry and not their life.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dynamo_sdk.errors import ConnectionLost, DynamoError, EngineFailed
from dynamo_sdk.runtime.calls import RemoteStream
from dynamo_sdk.runtime.clock import Clock, TimerHandle
from dynamo_sdk.types import GenerateChunk, Role

LegFact = tuple[Role, GenerateChunk | DynamoError]


@dataclass(slots=True)
class _Running:
    stream: RemoteStream
    last_s: float
    pending: asyncio.Task[GenerateChunk | DynamoError] | None = None
    watchdog: TimerHandle | None = None


class Legs:
    """Streams by role. ``next_fact`` gives a chunk, or the error that ended a leg."""

    def __init__(self, clock: Clock, stall_timeout_s: float) -> None:
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._running: dict[Role, _Running] = {}

    def start(self, role: Role, stream: RemoteStream) -> None:
        running = self._running[role] = _Running(stream, self._clock.now_s())
        self._watch(role, running)

    async def next_fact(self) -> LegFact:
        """Wait for the next answer of any leg; there must be one."""
        if len(self._running) == 1:
            [(role, running)] = self._running.items()
            if running.pending is None:
                return self._note(role, running, await _read(running.stream))
        for running in self._running.values():
            if running.pending is None:
                running.pending = asyncio.get_running_loop().create_task(_read(running.stream))
        pending = [running.pending for running in self._running.values() if running.pending is not None]
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for role, running in self._running.items():
            if running.pending is not None and running.pending.done():
                task, running.pending = running.pending, None
                return self._note(role, running, task.result())
        raise AssertionError("a task was done and is not")

    async def cancel(self, role: Role) -> None:
        """Stop a leg; nothing happens if it is over."""
        running = self._running.pop(role, None)
        if running is None:
            return
        if running.watchdog is not None:
            running.watchdog.cancel()
        if running.pending is not None:
            running.pending.cancel()
            await asyncio.wait([running.pending])
        await running.stream.aclose()

    async def close(self) -> None:
        for role in list(self._running):
            await self.cancel(role)

    def _note(self, role: Role, running: _Running, answer: GenerateChunk | DynamoError) -> LegFact:
        running.last_s = self._clock.now_s()
        return role, answer

    def _watch(self, role: Role, running: _Running) -> None:
        """One timer per leg, moved only when it runs out: a chunk costs it nothing."""
        running.watchdog = self._clock.call_at(
            running.last_s + self._stall_timeout_s, lambda: self._on_watchdog(role, running)
        )

    def _on_watchdog(self, role: Role, running: _Running) -> None:
        if self._running.get(role) is not running:
            return
        silent_s = self._clock.now_s() - running.last_s
        if silent_s < self._stall_timeout_s:
            self._watch(role, running)
        else:
            running.stream.fail(ConnectionLost(f"the {role} worker said nothing for {silent_s:.0f} s"))


async def _read(stream: RemoteStream) -> GenerateChunk | DynamoError:
    try:
        chunk = await anext(stream)
    except StopAsyncIteration:
        return EngineFailed("the worker ended the stream without a last chunk")
    except DynamoError as error:
        return error
    assert isinstance(chunk, GenerateChunk)
    return chunk
