from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dynamo_sdk.services.openai.stall_watch import MIN_PROGRESS_BYTES, StallWatch

pytestmark = pytest.mark.anyio


class SlowWire(asyncio.Transport):
    """``num_left``: bytes in the buffer."""

    def __init__(self, num_left: int) -> None:
        super().__init__()
        self.num_left = num_left
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.num_left

    def abort(self) -> None:
        self.is_aborted = True


class VirtualTime:
    """The running loop, in which time passes only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: self.now_s)
        monkeypatch.setattr(loop, "call_at", self.call_at)

    def call_at(self, when_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when_s, callback, (), asyncio.get_running_loop())
        self.due.append((when_s, lambda: None if handle.cancelled() else callback()))
        return handle

    def advance(self, by_s: float) -> None:
        until_s = self.now_s + by_s
        while self.due and min(self.due, key=lambda one: one[0])[0] <= until_s:
            one = min(self.due, key=lambda one: one[0])
            self.due.remove(one)
            self.now_s = one[0]
            one[1]()
        self.now_s = until_s


async def test_it_counts_from_what_the_client_took_last(monkeypatch: pytest.MonkeyPatch) -> None:
    time, wire, watch = VirtualTime(monkeypatch), SlowWire(100_000), StallWatch(60.0)
    watch.num_written_bytes = 100_000
    watch.start(wire)
    for _ in range(10):
        time.advance(50.0)
        wire.num_left -= MIN_PROGRESS_BYTES
    time.advance(55.0)
    assert not wire.is_aborted
    time.advance(25.0)
    assert wire.is_aborted
    watch.close()


async def test_what_is_written_meanwhile_hides_no_progress_and_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = VirtualTime(monkeypatch)
    wires = [SlowWire(100_000), SlowWire(100_000)]
    watches = [StallWatch(60.0), StallWatch(60.0)]
    for wire, watch in zip(wires, watches, strict=True):
        watch.num_written_bytes = 100_000
        watch.start(wire)
    for _ in range(4):
        time.advance(25.0)
        for wire, watch, num_taken in zip(wires, watches, (5000, 0), strict=True):
            watch.num_written_bytes += 5000
            wire.num_left += 5000 - num_taken
    assert [wire.is_aborted for wire in wires] == [False, True]
    for watch in watches:
        watch.close()


async def test_taking_too_little_is_stalling(monkeypatch: pytest.MonkeyPatch) -> None:
    time, wire, watch = VirtualTime(monkeypatch), SlowWire(100_000), StallWatch(60.0)
    watch.num_written_bytes = 100_000
    watch.start(wire)
    for _ in range(80):
        time.advance(1.0)
        wire.num_left -= 1
    assert wire.is_aborted
    watch.close()


async def test_stopped_it_does_nothing_and_started_anew_it_counts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time, wire, watch = VirtualTime(monkeypatch), SlowWire(100_000), StallWatch(60.0)
    watch.start(wire)
    time.advance(40.0)
    watch.stop()
    time.advance(400.0)
    watch.start(wire)
    time.advance(59.0)
    assert not wire.is_aborted
    time.advance(20.0)
    assert wire.is_aborted
    watch.close()
