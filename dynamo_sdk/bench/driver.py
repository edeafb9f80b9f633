"""The load itself: asks become requests at their time, answers become records.

Two shapes. *Closed*: ``concurrency`` lanes, each sends its next request when its last one is over. *Open*:
every ask has a time of its own and is sent then, however many are under way: a slow server does not
slow its users down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from dynamo_sdk.runtime.clock import Clock

from .answer import Answer
from .http1 import Reader
from .load import Load, LoadLimits
from .record import ErrorKind
from .workload import Ask

BEAT_S = 0.02
"""How often the driver looks how late its event loop is."""
_BEATS_PER_REPORT = 25


class Sender(Protocol):
    """What carries a request: ``HttpClient``, or a fake."""

    async def send(self, message: bytes, reader: Reader) -> None: ...


class Driver:
    """One run. ``cpu_s``: the processor time of this process; ``observe`` sees the load twice a second."""

    def __init__(
        self,
        sender: Sender,
        clock: Clock,
        limits: LoadLimits,
        *,
        write: Callable[[Ask], bytes],
        cpu_s: Callable[[], float],
        observe: Callable[[Load], None] | None = None,
    ) -> None:
        self._sender = sender
        self._clock = clock
        self._limits = limits
        self._write = write
        self._cpu_s = cpu_s
        self._observe = observe
        self._load = Load()
        self._origin_s = 0.0
        self._cpu_began_s = 0.0
        self._stopped = asyncio.Event()
        self._ready: deque[tuple[Ask, bytes]] = deque()

    def stop(self) -> None:
        """End now: send nothing more, cut off what is under way and count it as unfinished."""
        self._stopped.set()

    async def run(self, asks: Iterator[Ask]) -> Load:
        """Send ``asks`` until a limit, their end or ``stop``, and wait for their answers. Once."""
        load = self._load
        self._origin_s = self._clock.now_s()
        stopped = asyncio.create_task(self._stopped.wait())
        tasks = [asyncio.create_task(self._beat()), stopped, asyncio.create_task(self._send_all(asks))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            load.num_unfinished = load.num_running
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        load.now_s = self._passed_s()
        if load.began_s is not None:
            load.cpu_s = self._cpu_s() - self._cpu_began_s
        return load

    async def _send_all(self, asks: Iterator[Ask]) -> None:
        async with asyncio.TaskGroup() as group:
            if self._limits.concurrency is not None:
                for _ in range(self._limits.concurrency):
                    self._prepare(asks)
                for _ in range(self._limits.concurrency):
                    group.create_task(self._lane(asks))
                return
            for ask in asks:
                if self._is_over(ask):
                    return
                message = self._write(ask)
                # A timer of the event loop counts milliseconds and may come a little early.
                while (wait_s := (ask.due_s or 0.0) - self._passed_s()) > 0:
                    await self._clock.sleep(wait_s)
                group.create_task(self._send(ask, message))

    async def _lane(self, asks: Iterator[Ask]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._ready:
                self._prepare(asks)
            if not self._ready or self._is_over(self._ready[0][0]):
                return
            ask, message = self._ready.popleft()
            # The next one is written after this one is sent: a lane that is free sends at once.
            loop.call_soon(self._prepare, asks)
            await self._send(ask, message)

    def _prepare(self, asks: Iterator[Ask]) -> None:
        for ask in islice(asks, 1):
            self._ready.append((ask, self._write(ask)))

    def _is_over(self, ask: Ask) -> bool:
        limits, began_s = self._limits, self._load.began_s
        if limits.max_requests is not None and ask.index >= limits.num_warmup + limits.max_requests:
            return True
        if limits.duration_s is None or began_s is None:
            return False
        return max(self._passed_s(), ask.due_s or 0.0) >= began_s + limits.duration_s

    async def _send(self, ask: Ask, message: bytes) -> None:
        load = self._load
        is_warmup = ask.index < self._limits.num_warmup
        sent_s = self._clock.now_s()
        if load.began_s is None and not is_warmup:
            load.began_s = sent_s - self._origin_s
            self._cpu_began_s = self._cpu_s()
        answer = Answer(
            ask, sent_s=sent_s, origin_s=self._origin_s, gaps_s=None if is_warmup else load.gaps_s
        )
        load.num_sent += 1
        await self._exchange(message, answer, sent_s + self._limits.timeout_s)
        record = answer.end(self._clock.now_s(), is_warmup=is_warmup)
        load.records.append(record)
        load.num_failed += record.error is not None
        load.num_output_tokens += record.num_output_tokens or 0

    async def _exchange(self, message: bytes, answer: Answer, until_s: float) -> None:
        """Like ``asyncio.timeout``, on a clock that tests can move."""
        task = asyncio.current_task()
        assert task is not None
        is_late = False

        def expire() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        timer = self._clock.call_at(until_s, expire)
        try:
            await self._sender.send(message, answer)
        except asyncio.CancelledError:
            if not is_late or task.uncancel() > 0:
                raise
            answer.fail(ErrorKind.TIMEOUT, f"not over after {self._limits.timeout_s:g} s")
        finally:
            timer.cancel()

    async def _beat(self) -> None:
        load = self._load
        num_beats = 0
        due_s = self._clock.now_s()
        while True:
            due_s = max(due_s + BEAT_S, self._clock.now_s())
            await self._clock.sleep(due_s - self._clock.now_s())
            load.loop_lags_s.append(max(0.0, self._clock.now_s() - due_s))
            num_beats += 1
            if self._observe is not None and num_beats % _BEATS_PER_REPORT == 0:
                load.now_s = self._passed_s()
                self._observe(load)

    def _passed_s(self) -> float:
        return self._clock.now_s() - self._origin_s
