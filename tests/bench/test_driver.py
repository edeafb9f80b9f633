"""The load on a clock that stands still until it is moved, against a sender with a fixed time to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import repeat
from typing import Any

import pytest

from dynamo_sdk.bench.driver import Driver
from dynamo_sdk.bench.http1 import Reader
from dynamo_sdk.bench.load import Load, LoadLimits
from dynamo_sdk.bench.workload import even_times, same_size
from dynamo_sdk.runtime.clock import ManualClock

CHUNK = b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'


class FakeServer:
    """Answers every request ``delay_s`` after it came."""

    def __init__(self, clock: ManualClock, delay_s: float) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self.num_running = 0
        self.most_running = 0

    async def send(self, message: bytes, reader: Reader) -> None:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await self._clock.sleep(self._delay_s)
        finally:
            self.num_running -= 1
        reader.status(200)
        reader.body(self._clock.now_s(), CHUNK)


class Bench:
    def __init__(self, *, delay_s: float = 1.0, **limits: Any) -> None:
        settings: dict[str, Any] = {
            "concurrency": None,
            "max_requests": None,
            "duration_s": None,
            "num_warmup": 0,
            "timeout_s": 60.0,
        }
        self.clock = ManualClock(1000.0)
        self.server = FakeServer(self.clock, delay_s)
        self.seen: list[tuple[float, int]] = []
        self.driver = Driver(
            self.server,
            self.clock,
            LoadLimits(**{**settings, **limits}),
            write=lambda ask: b"",
            cpu_s=lambda: self.clock.now_s() / 4,
            observe=lambda load: self.seen.append((load.now_s, load.num_running)),
        )

    async def finish(self, times: Iterable[float | None], *, stop_s: float | None = None) -> Load:
        """Move the clock until the load is over."""
        task = asyncio.create_task(self.driver.run(same_size(5, 3, times)))
        for step in range(10_000):
            if task.done():
                break
            if stop_s is not None and step * 0.05 >= stop_s:
                self.driver.stop()
            await self.clock.advance(0.05)
        return await task


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_closed_lanes_send_when_their_last_request_is_over() -> None:
    async def main() -> None:
        bench = Bench(concurrency=3, max_requests=9)
        load = await bench.finish(repeat(None))
        assert sorted(round(r.sent_s) for r in load.records) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert bench.server.most_running == 3
        assert [round(r.e2e_s, 6) for r in load.records] == [1.0] * 9
        assert load.num_output_tokens == 27
        assert (load.num_unfinished, load.num_failed) == (0, 0)

    run(main())


def test_open_arrivals_do_not_wait_for_answers() -> None:
    async def main() -> None:
        bench = Bench(delay_s=10.0, max_requests=8)
        load = await bench.finish(even_times(4))
        assert [round(r.sent_s, 6) for r in load.records] == [n / 4 for n in range(8)]
        assert [round(r.lag_s or 0.0, 6) for r in load.records] == [0.0] * 8
        assert bench.server.most_running == 8

    run(main())


def test_warm_up_requests_are_not_measured() -> None:
    async def main() -> None:
        bench = Bench(concurrency=2, max_requests=4, num_warmup=2)
        load = await bench.finish(repeat(None))
        assert [r.is_warmup for r in sorted(load.records, key=lambda r: r.index)] == [True] * 2 + [False] * 4
        assert load.began_s == pytest.approx(1.0)
        assert load.cpu_s == pytest.approx((load.now_s - 1.0) / 4)

    run(main())


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_duration_ends_the_sending_and_waits_for_answers(concurrency: int | None) -> None:
    async def main() -> None:
        bench = Bench(delay_s=0.75, concurrency=concurrency, duration_s=2.0)
        load = await bench.finish(even_times(2) if concurrency is None else repeat(None))
        sent_s = sorted({round(r.sent_s, 6) for r in load.records})
        assert sent_s == ([0, 0.5, 1, 1.5] if concurrency is None else [0, 0.75, 1.5])
        assert all(r.error is None for r in load.records)
        assert load.num_unfinished == 0

    run(main())


def test_stopping_cuts_off_what_is_under_way() -> None:
    async def main() -> None:
        bench = Bench(concurrency=2, max_requests=100)
        load = await bench.finish(repeat(None), stop_s=2.5)
        assert len(load.records) == 4
        assert load.num_unfinished == 2
        assert bench.server.num_running == 0

    run(main())


def test_a_request_that_takes_too_long_fails_and_the_lane_goes_on() -> None:
    async def main() -> None:
        bench = Bench(delay_s=5.0, concurrency=1, max_requests=2, timeout_s=2.0)
        load = await bench.finish(repeat(None))
        assert [(r.error, r.message, round(r.e2e_s)) for r in load.records] == [
            ("timeout", "not over after 2 s", 2)
        ] * 2
        assert load.num_failed == 2

    run(main())


def test_somebody_may_watch_twice_a_second() -> None:
    async def main() -> None:
        bench = Bench(delay_s=2.0, concurrency=1, max_requests=1)
        load = await bench.finish(repeat(None))
        assert [round(at_s, 6) for at_s, _ in bench.seen[:3]] == [0.5, 1.0, 1.5]
        assert {num for _, num in bench.seen[:3]} == {1}
        assert max(load.loop_lags_s) == 0

    run(main())


def test_what_goes_wrong_in_writing_ends_the_load() -> None:
    async def main() -> None:
        bench = Bench(concurrency=1)

        def broken(ask: object) -> bytes:
            raise ZeroDivisionError

        bench.driver._write = broken
        with pytest.raises(ExceptionGroup) as caught:
            await bench.finish(repeat(None))
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)

    run(main())
