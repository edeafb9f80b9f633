"""Against a loop whose time is ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.services.openai.lazy_timer import LazyTimer


class Handle:
    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s, self.callback, self.is_cancelled = due_s, callback, False

    def when(self) -> float:
        return self.due_s

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.handles: list[Handle] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Handle:
        self.handles.append(Handle(due_s, callback))
        return self.handles[-1]

    @property
    def waiting(self) -> list[Handle]:
        return [handle for handle in self.handles if not handle.is_cancelled]

    def run_until(self, end_s: float) -> None:
        while due := sorted([h for h in self.waiting if h.due_s <= end_s], key=Handle.when):
            self.handles.remove(due[0])
            self.now_s = max(self.now_s, due[0].due_s)
            due[0].callback()
        self.now_s = end_s


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def test_a_timer_that_is_moved_back_leaves_the_loops_alone(loop: Loop) -> None:
    timer, fired = LazyTimer(), []
    for _ in range(100):
        timer.start(5.0, lambda: fired.append(loop.now_s))
        loop.run_until(loop.now_s + 0.01)
    assert len(loop.handles) == 1
    loop.run_until(20.0)
    assert fired == [pytest.approx(0.99 + 5.0)]


def test_closing_leaves_nothing_behind(loop: Loop) -> None:
    timer = LazyTimer()
    timer.start(5.0, lambda: pytest.fail("it is closed"))
    timer.close()
    timer.close()
    assert not loop.waiting


Move = tuple[str, float]


@given(st.lists(st.tuples(st.sampled_from(["start", "stop", "wait"]), st.floats(0.0, 10.0)), max_size=30))
def test_it_fires_when_a_plain_timer_would(moves: list[Move]) -> None:
    loop, timer = Loop(), LazyTimer()
    fired: list[float] = []
    expected: list[float] = []
    due_s: float | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        for move, amount_s in [*moves, ("wait", 100.0)]:
            if move == "start":
                timer.start(amount_s, lambda: fired.append(loop.now_s))
                due_s = loop.now_s + amount_s
            elif move == "stop":
                timer.stop()
                due_s = None
            else:
                if due_s is not None and due_s <= loop.now_s + amount_s:
                    expected.append(due_s)
                    due_s = None
                loop.run_until(loop.now_s + amount_s)
    assert fired == expected
