"""Live time with timers of the kernel. How precise they are is measured, not tested: hosts are shared."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

import pytest

from dynamo_sdk.engines.mocker.precise_clock import PreciseClock

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="timers as file descriptors are Linux's"),
]


@pytest.fixture
def clock() -> Iterator[PreciseClock]:
    clock = PreciseClock()
    yield clock
    clock.close()


async def test_callbacks_run_in_order_and_never_early(clock: PreciseClock) -> None:
    start_s = clock.now_s()
    ran: list[tuple[int, float]] = []
    over = asyncio.Event()
    for number in (3, 1, 4, 0, 2):
        due_s = start_s + number * 0.0007 + 0.001
        clock.call_at(due_s, lambda number=number, due_s=due_s: ran.append((number, clock.now_s() - due_s)))  # type: ignore[misc]
    clock.call_at(start_s + 0.006, over.set)
    await over.wait()
    assert [number for number, _ in ran] == [0, 1, 2, 3, 4]
    assert all(late_s >= 0 for _, late_s in ran)


async def test_what_is_due_runs_in_the_next_tick(clock: PreciseClock) -> None:
    ran: list[str] = []
    clock.call_at(clock.now_s() - 1.0, lambda: ran.append("past"))
    assert not ran
    await asyncio.sleep(0)
    assert ran == ["past"]


async def test_a_callback_that_comes_back_at_once_lets_others_run(clock: PreciseClock) -> None:
    ran: list[str] = []
    over = asyncio.Event()

    def again() -> None:
        ran.append("again")
        asyncio.get_running_loop().call_soon(ran.append, "other")
        if len(ran) < 9:
            clock.call_at(clock.now_s() - 1.0, again)
        else:
            asyncio.get_running_loop().call_soon(over.set)

    clock.call_at(clock.now_s() - 1.0, again)
    await over.wait()
    assert ran == ["again", "other"] * 5


async def test_cancelled_ones_never_run(clock: PreciseClock) -> None:
    ran: list[str] = []
    over = asyncio.Event()
    clock.call_later(0.001, lambda: ran.append("first")).cancel()
    later = clock.call_later(0.003, lambda: ran.append("later"))
    clock.call_later(0.002, later.cancel)
    clock.call_later(0.004, over.set)
    await over.wait()
    assert not ran


async def test_a_callback_that_raises_harms_no_other(clock: PreciseClock) -> None:
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
    over = asyncio.Event()
    moment_s = clock.now_s() + 0.001
    ran_out: list[int] = []
    clock.call_at(moment_s, ran_out.pop)
    clock.call_at(moment_s, over.set)
    await over.wait()
    assert [type(error) for error in raised] == [IndexError]


async def test_sleep(clock: PreciseClock) -> None:
    start_s = clock.now_s()
    await clock.sleep(0.002)
    assert clock.now_s() - start_s >= 0.002


async def test_close_gives_the_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    clock = PreciseClock()
    ran: list[str] = []
    clock.call_later(0.001, lambda: ran.append("too late"))
    clock.close()
    clock.close()
    assert len(os.listdir("/proc/self/fd")) == before
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(0.003, over.set)
    await over.wait()
    assert not ran
