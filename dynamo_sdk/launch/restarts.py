"""When to start a replica again, and when to give up: a decision, without a process or a clock.

A replica that fails is started again after a delay that doubles with each failure in a row. A run that
stayed ready for ``stable_s`` ends the row. What cannot get better by trying is not tried again: a user's
mistake (exit code 2), and a replica that reports an error of its own (exit code 1) before its slot has
ever been ready. A replica that was killed is always worth another try.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from .exits import EXIT_FAILED, EXIT_USER_ERROR
from .guardian import CANNOT_START


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """``max_failures`` in a row end the slot; with the defaults that is after some 30 s of trying."""

    first_delay_s: float = 0.25
    factor: float = 2.0
    max_delay_s: float = 30.0
    max_failures: int = 7
    stable_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaExit:
    """The end of one run that nobody asked for. ``code``: 128 + n for signal n. ``ready_for_s``: None =
    it never became ready."""

    code: int
    ready_for_s: float | None = None

    def __str__(self) -> str:
        if self.code > 128:
            try:
                return f"was killed by {signal.Signals(self.code - 128).name}"
            except ValueError:
                pass
        when = " before it was ready" if self.ready_for_s is None else ""
        return f"ended with code {self.code}{when}"


@dataclass(frozen=True, slots=True)
class Restart:
    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    reason: str


class RestartDecider:
    """The memory of one slot: exits in, a delay or the end out."""

    def __init__(self, policy: RestartPolicy = RestartPolicy()) -> None:
        self._policy = policy
        self._num_failures = 0
        self.was_ever_ready = False

    def on_exit(self, end: ReplicaExit) -> Restart | GiveUp:
        """Decide once per run, in order. Nothing more is asked after ``GiveUp``."""
        policy = self._policy
        if end.ready_for_s is not None:
            self.was_ever_ready = True
            if end.ready_for_s >= policy.stable_s:
                self._num_failures = 0
        self._num_failures += 1
        if end.code in (EXIT_USER_ERROR, CANNOT_START):
            return GiveUp(str(end))
        if end.code == EXIT_FAILED and not self.was_ever_ready:
            return GiveUp(str(end))
        if self._num_failures >= policy.max_failures:
            return GiveUp(f"{end}, failure {self._num_failures} in a row")
        delay_s = policy.first_delay_s * policy.factor ** (self._num_failures - 1)
        return Restart(min(policy.max_delay_s, delay_s))
