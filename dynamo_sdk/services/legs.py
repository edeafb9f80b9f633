"""The legs that a request has under way: usually one, two at a rendezvous.

What a leg answers goes up by plain calls, in the tick in which it arrives. A leg that says nothing for
``stall_timeout_s`` is given up, so that a worker that hangs costs its requests a retry and not their life.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo_sdk.errors import ConnectionLost, DynamoError, EngineFailed
from dynamo_sdk.runtime.calls import CallListener, PushedCall
from dynamo_sdk.runtime.clock import Clock, TimerHandle
from dynamo_sdk.types import GenerateChunk, Role

OnFact = Callable[[Role, GenerateChunk | DynamoError, float], None]
"""Is told each chunk of a leg, or the error that ended it, and the clock's time."""


class Legs:
    """Calls by role."""

    def __init__(self, clock: Clock, stall_timeout_s: float) -> None:
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._running: dict[Role, _Leg] = {}
        self._is_paused = False

    def start(self, role: Role, call: Callable[[CallListener], PushedCall], on_fact: OnFact) -> None:
        """Start a leg; ``call`` makes it tell the listener what it answers."""
        leg = self._running[role] = _Leg(role, self._clock, self._stall_timeout_s, on_fact)
        leg.start(call(leg))
        if self._is_paused:
            leg.pause()

    def cancel(self, role: Role) -> None:
        """Stop a leg; nothing happens if it is over."""
        leg = self._running.pop(role, None)
        if leg is not None:
            leg.cancel()

    def close(self) -> None:
        for role in list(self._running):
            self.cancel(role)

    def pause(self) -> None:
        """Let what legs answer wait, with them and in the end with their workers, until ``resume``."""
        self._is_paused = True
        for leg in self._running.values():
            leg.pause()

    def resume(self) -> None:
        self._is_paused = False
        for leg in list(self._running.values()):
            leg.resume()


class _Leg:
    """One leg and its watchdog: one timer, moved only when it runs out, so that a chunk costs it nothing."""

    __slots__ = (
        "_call",
        "_clock",
        "_is_paused",
        "_last_s",
        "_on_fact",
        "_role",
        "_stall_timeout_s",
        "_watchdog",
    )

    def __init__(self, role: Role, clock: Clock, stall_timeout_s: float, on_fact: OnFact) -> None:
        self._role = role
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._on_fact = on_fact
        self._call: PushedCall | None = None
        self._last_s = clock.now_s()
        self._is_paused = False
        self._watchdog: TimerHandle | None = None

    def start(self, call: PushedCall) -> None:
        self._call = call
        self._watch()

    def pause(self) -> None:
        self._is_paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self._is_paused = False
        self._last_s = self._clock.now_s()
        if self._call is not None:
            self._call.resume()

    def cancel(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.cancel()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    # -- CallListener

    def on_item(self, item: GenerateChunk) -> None:
        self._last_s = now_s = self._clock.now_s()
        self._on_fact(self._role, item, now_s)

    def on_end(self, error: DynamoError | None) -> None:
        reason = error or EngineFailed("the worker ended the stream without a last chunk")
        self._on_fact(self._role, reason, self._clock.now_s())

    # -- watchdog

    def _watch(self) -> None:
        self._watchdog = self._clock.call_at(self._last_s + self._stall_timeout_s, self._on_watchdog)

    def _on_watchdog(self) -> None:
        now_s = self._clock.now_s()
        if self._is_paused:
            self._last_s = now_s  # it is we who do not read
        silent_s = now_s - self._last_s
        if silent_s < self._stall_timeout_s:
            self._watch()
        elif self._call is not None:
            error = ConnectionLost(f"the {self._role} worker said nothing for {silent_s:.0f} s")
            self._call.fail(error)
