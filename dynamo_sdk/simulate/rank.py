"""``SimRank``: one rank of a simulated worker on the timeline.

::

    idle ── add ──> begins a step, or a run of steps ──> it ends: news for the listener ──> the next one
                                  ▲
                                  └ add while it runs: a run is cut after the step under way

What the core decides at the beginning of a step becomes true, and is told, at its end.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import msgspec

from dynamo_sdk.engines.mocker import Admission, MockerCore, PlannedRun, StepResult
from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.scheduling import SequenceUpdate
from dynamo_sdk.types import GenerateRequest, KVEventBatch, LoadSnapshot

from .timeline import Order, Timeline


class RankListener(Protocol):
    """What a rank tells, always at the end of a step."""

    def answered(self, update: SequenceUpdate, *, is_first: bool) -> None:
        """The first token of a leg, or its last one."""
        ...

    def admitted(self, admission: Admission, at_s: float, *, is_again: bool) -> None:
        """A leg's first step began at ``at_s``, or the first one after a preemption."""
        ...

    def changed(self, rank: SimRank, events: KVEventBatch) -> None:
        """The rank's prefix cache."""
        ...


class Gaps:
    """Times between the tokens of one request, as (seconds, how many)."""

    def __init__(self) -> None:
        self.seconds = array("d")
        self.counts = array("q")

    def add(self, seconds: float, count: int) -> None:
        if count:
            self.seconds.append(seconds)
            self.counts.append(count)


class SimRank:
    """``busy_s``: time in steps. ``num_prefill_tokens``: computed. ``seat``: its number in the book, None
    when it has left."""

    def __init__(self, core: MockerCore, seat: int, timeline: Timeline, listener: RankListener) -> None:
        self.core = core
        self.seat: int | None = seat
        self.gaps = Gaps()
        self.busy_s = 0.0
        self.num_steps = self.num_prefill_tokens = self.num_preempted = 0
        self._timeline = timeline
        self._listener = listener
        self._unanswered: set[str] = set()
        self._stalled: dict[str, float] = {}  # preempted: when its last token came
        self._began_s = 0.0
        self._step: StepResult | None = None  # under way,
        self._run: PlannedRun | None = None  # or a run that may still be cut,
        self._ended: tuple[tuple[SequenceUpdate, ...], KVEventBatch | None] | None = None  # or one that was
        self._num_ending = 0  # requests whose last token is still to come
        self._due: object | None = None  # the end that is meant; a cut run has left another on the timeline
        self._next_begin_s: float | None = None

    @property
    def is_busy(self) -> bool:
        return self._due is not None

    def load(self) -> LoadSnapshot:
        """As a live rank reports it: requests whose last token is still to come are running."""
        load = self.core.load(self._timeline.now_s)
        if not self._num_ending:
            return load
        return msgspec.structs.replace(load, num_running=load.num_running + self._num_ending)

    def add(self, request: GenerateRequest, keys: Sequence[CacheKey]) -> None:
        """Raises ``InvalidRequest`` for what can never run here."""
        now_s = self._timeline.now_s
        self._cut(now_s)
        self.core.add(request, now_s, keys)
        self._unanswered.add(request.request_id)
        if not self.is_busy:
            self._begin_at(now_s)

    def _begin_at(self, at_s: float) -> None:
        if self._next_begin_s is None or at_s < self._next_begin_s:
            self._next_begin_s = at_s
            self._timeline.at(at_s, Order.BEGIN, self._begin)

    def _begin(self) -> None:
        if self.is_busy or self._next_begin_s != self._timeline.now_s:
            return
        self._next_begin_s = None
        self._began_s = now_s = self._timeline.now_s
        run = self.core.plan_run(now_s)
        if run is not None:
            if len(run.ends_s) > 1:  # all but the last: that one's books close when it begins, as in any step
                self._run = msgspec.structs.replace(run, ends_s=run.ends_s[:-1])
                self._end_at(run.ends_s[-2])
            else:
                self._close(run, 1)
                self._end_at(run.ends_s[0])
            return
        self._step = self.core.step(now_s)
        if self._step is not None:
            self._num_ending = sum(update.finish_reason is not None for update in self._step.updates)
            self._end_at(now_s + self._step.duration_s)
            return
        if (events := self.core.take_kv_events()) is not None:
            self._listener.changed(self, events)
        if (arrival_s := self.core.next_transfer_s) is not None:
            self._begin_at(arrival_s)

    def _cut(self, now_s: float) -> None:
        """Let a run end with the step under way: its books are closed, its news still to come."""
        run, self._run = self._run, None
        if run is None:
            return
        num_steps = min(bisect_left(run.ends_s, now_s) + 1, len(run.ends_s))
        self._close(run, num_steps)
        self._end_at(run.ends_s[num_steps - 1])

    def _close(self, run: PlannedRun, num_steps: int) -> None:
        began_s = self._began_s
        for end_s in run.ends_s[:num_steps]:
            self.gaps.add(end_s - began_s, run.num_decode_requests)
            began_s = end_s
        self.num_steps += num_steps
        result = self.core.end_run(num_steps)
        self._ended = result.updates, result.events
        self._num_ending = len(result.updates)

    def _end_at(self, at_s: float) -> None:
        self._due = due = object()

        def end() -> None:
            if self._due is due:
                self._end()

        self._timeline.at(at_s, Order.END, end)

    def _end(self) -> None:
        now_s = self._timeline.now_s
        self._due = None
        self.busy_s += now_s - self._began_s
        step, self._step = self._step, None
        if step is not None:
            self._tell(step, now_s)
        else:
            run, self._run = self._run, None
            if run is not None:
                self._close(run, len(run.ends_s))
            assert self._ended is not None, "a run ended that was not closed"
            (updates, events), self._ended = self._ended, None
            for update in updates:
                self._listener.answered(update, is_first=False)
            if events is not None:
                self._listener.changed(self, events)
        self._num_ending = 0
        self._begin_at(now_s)

    def _tell(self, step: StepResult, now_s: float) -> None:
        listener, unanswered, stalled = self._listener, self._unanswered, self._stalled
        metrics = step.metrics
        self.num_steps += 1
        self.num_prefill_tokens += metrics.num_prefill_tokens
        self.num_preempted += metrics.num_preempted
        for request_id in step.preempted:
            stalled[request_id] = step.started_s
        for admission in step.admitted:
            listener.admitted(admission, step.started_s, is_again=False)
        for admission in step.readmitted:
            listener.admitted(admission, step.started_s, is_again=True)
        num_gaps = len(step.updates)
        if step.events is not None:
            listener.changed(self, step.events)
        for update in step.updates:
            request_id = update.request_id
            is_first = request_id in unanswered
            if is_first:  # a gap before it, if there is one, began on another worker
                unanswered.discard(request_id)
                stalled.pop(request_id, None)
                num_gaps -= 1
            elif stalled and (since_s := stalled.pop(request_id, None)) is not None:
                self.gaps.add(now_s - since_s, 1)
                num_gaps -= 1
            if is_first or update.finish_reason is not None:
                listener.answered(update, is_first=is_first)
        self.gaps.add(step.duration_s, num_gaps)
