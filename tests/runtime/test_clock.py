from __future__ import annotations

import asyncio

import pytest

from dynamo_sdk.runtime.clock import ManualClock, SystemClock

pytestmark = pytest.mark.anyio


async def test_a_manual_clock_stands_still_until_moved() -> None:
    clock, order = ManualClock(100.0), list[str]()

    async def sleeper(name: str, delay_s: float) -> None:
        await clock.sleep(delay_s)
        order.append(f"{name}@{clock.now_s():g}")

    tasks = [asyncio.create_task(sleeper(name, delay)) for name, delay in [("b", 2), ("a", 1), ("c", 9)]]
    await clock.advance(0.5)
    assert order == []
    await clock.advance(2)
    assert order == ["a@101", "b@102"]
    assert clock.now_s() == 102.5
    assert clock.next_timer_s() == 109
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert clock.next_timer_s() is None


async def test_callbacks_that_arm_callbacks_run_in_one_advance() -> None:
    clock, seen = ManualClock(), list[float]()

    def again() -> None:
        seen.append(clock.now_s())
        if len(seen) < 3:
            clock.call_later(1.0, again)

    clock.call_at(1.0, again)
    await clock.advance(10.0)
    assert seen == [1.0, 2.0, 3.0]


async def test_a_cancelled_timer_does_not_run() -> None:
    clock = ManualClock()
    clock.call_later(1.0, lambda: pytest.fail("it ran")).cancel()
    await clock.advance(2.0)


async def test_the_system_clock_is_the_loops() -> None:
    clock = SystemClock()
    before_s = clock.now_s()
    await clock.sleep(0.001)
    assert clock.now_s() - before_s >= 0.0009
    await clock.sleep(0)
