"""One slot of a service: keeps a replica's process in it, whatever happens to the process.

::

    STARTING ──record is ready──> READY
       │  ▲                         │
       │  └───after the delay─── BACKING_OFF <── an exit nobody asked for
       │                            │
       └────────stop()──────────────┴──> STOPPED        or, when it is hopeless, FAILED

Every start is a new worker with a new ``WorkerId``; a message for the old one can never reach the new.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto

import anyio

from dynamo_sdk.errors import ConfigError, LaunchError
from dynamo_sdk.interfaces import Fleet
from dynamo_sdk.types import WorkerId

from .exits import EXIT_USER_ERROR
from .logs import LineBuffer, LogPrinter
from .processes import GuardedProcess
from .raised import RaisedExceptions
from .restarts import GiveUp, ReplicaExit, RestartDecider, RestartPolicy

NUM_REPORTED_LINES = 15
_OUTPUT_GRACE_S = 1.0


class SlotState(Enum):
    STARTING = auto()
    READY = auto()
    BACKING_OFF = auto()
    STOPPED = auto()
    FAILED = auto()


class ReplicaSlot:
    """Supervises replica ``index`` of ``service``. ``run`` is its one task; all else is called beside it.

    ``start`` makes the process of a new worker, and is told whether an earlier one was ready; ``on_change``
    hears of every new state and must not block.
    """

    def __init__(
        self,
        service: str,
        index: int,
        *,
        start: Callable[[WorkerId, bool], Awaitable[GuardedProcess]],
        printer: LogPrinter,
        on_change: Callable[[], None],
        policy: RestartPolicy,
    ) -> None:
        self.service = service
        self.index = index
        self.name = f"{service}.{index}"
        self.state = SlotState.STARTING
        self.worker_id = WorkerId("")
        self.failure: ReplicaExit | None = None
        self.reason = ""
        self._start = start
        self._printer = printer
        self._on_change = on_change
        self._decider = RestartDecider(policy)
        self._process: GuardedProcess | None = None
        self._log = LineBuffer(self._on_line)
        self._raised = RaisedExceptions()
        self._started_s = 0.0
        self._ready_s: float | None = None
        self._stop_asked = anyio.Event()
        self._ended = anyio.Event()
        printer.announce(self.name)

    @property
    def last_lines(self) -> list[str]:
        """The end of the replica's log, over restarts."""
        return list(self._log.last_lines)

    @property
    def last_words(self) -> str:
        """For an error report: how the log ends, and what its last process raised before that."""
        lines = self.last_lines[-NUM_REPORTED_LINES:]
        if not lines:
            return ""
        text = _paragraph(f"{self.name} said last", lines)
        raised = self._raised.not_in(lines)
        return text + _paragraph("Before that it raised, the first one first", raised) if raised else text

    def observe(self, fleet: Fleet) -> None:
        """Discovery has news; ours may be among them."""
        record = fleet.get(self.worker_id)
        is_ready = record is not None and record.is_ready
        if is_ready and self.state is SlotState.STARTING:
            if self._ready_s is None:  # else it was only out of the registry's sight for a while
                self._ready_s = anyio.current_time()
                self._say(f"ready after {self._ready_s - self._started_s:.1f} s")
            self._become(SlotState.READY)
        elif not is_ready and self.state is SlotState.READY:
            self._become(SlotState.STARTING)

    def stop(self) -> None:
        """Drain: SIGTERM now, SIGKILL after the grace period. Idempotent."""
        if not self._stop_asked.is_set():
            self._stop_asked.set()
            if self._process is not None:
                self._process.stop()

    def kill(self) -> None:
        """End it now. Idempotent."""
        self._stop_asked.set()
        if self._process is not None:
            self._process.kill()

    async def wait_ended(self) -> None:
        """Return when ``run`` has: nothing of this slot is left."""
        await self._ended.wait()

    async def run(self) -> None:
        """Keep the slot filled until it is stopped or hopeless. When cancelled, kills what runs."""
        try:
            while not self._stop_asked.is_set():
                end = await self._run_once()
                if self._stop_asked.is_set():
                    break
                decision = self._decider.on_exit(end)
                if isinstance(decision, GiveUp):
                    self._fail(end, decision.reason)
                    return
                self._say(f"{end}; starting again in {decision.delay_s:.2g} s")
                self._become(SlotState.BACKING_OFF)
                with anyio.move_on_after(decision.delay_s):
                    await self._stop_asked.wait()
            self._become(SlotState.STOPPED)
        except LaunchError as error:
            self._fail(None, str(error))
        finally:
            self._ended.set()

    async def _run_once(self) -> ReplicaExit:
        self.worker_id = WorkerId(f"{self.name}-{secrets.token_hex(4)}")
        self._started_s, self._ready_s = anyio.current_time(), None
        self._raised.clear()
        self._become(SlotState.STARTING)
        process = self._process = await self._start(self.worker_id, self._decider.was_ever_ready)
        if self._stop_asked.is_set():
            process.kill()  # it has nothing to drain yet
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._forward_output, process)
                code = await process.wait()
                tasks.cancel_scope.deadline = anyio.current_time() + _OUTPUT_GRACE_S
        finally:
            with anyio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                await process.aclose()
            self._process = None
        ready_for_s = None if self._ready_s is None else anyio.current_time() - self._ready_s
        return ReplicaExit(code=code, ready_for_s=ready_for_s)

    async def _forward_output(self, process: GuardedProcess) -> None:
        try:
            async for piece in process.output():
                self._log.feed(piece)
        finally:
            self._log.close()

    def _on_line(self, line: str) -> None:
        self._raised.feed(line)
        self._printer.line(self.name, line)

    def _fail(self, end: ReplicaExit | None, reason: str) -> None:
        self.failure, self.reason = end, reason
        self._say(f"{reason}; giving up")
        self._become(SlotState.FAILED)

    def _become(self, state: SlotState) -> None:
        self.state = state
        self._on_change()

    def _say(self, text: str) -> None:
        self._printer.line(self.name, f"[{text}]")


def failure_of(failed: Sequence[ReplicaSlot]) -> LaunchError | ConfigError:
    """The error of the first slot that was given up, with the end of its log."""
    slot = failed[0]
    is_users = slot.failure is not None and slot.failure.code == EXIT_USER_ERROR
    kind = ConfigError if is_users else LaunchError
    return kind(f"{slot.name} {slot.reason}{last_words([slot])}")


def last_words(slots: Sequence[ReplicaSlot]) -> str:
    """Of each slot, for an error report."""
    return "".join(slot.last_words for slot in slots)


def _paragraph(title: str, lines: Sequence[str]) -> str:
    return f"\n\n{title}:\n" + "\n".join(f"  {line}" for line in lines)
