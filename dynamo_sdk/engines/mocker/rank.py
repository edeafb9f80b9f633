"""``Rank``: a ``MockerCore`` on a clock.

A timer ends each step when it is due, delivers all its tokens in that one tick of the event loop, and
starts the next step. That one is due a step's time after the last one was *due*, not after the timer ran:
what the event loop is late by does not add up. Only what is late by more than ``MAX_LAG_S`` (a stopped
process, a speed-up beyond what the host can do) is not made up for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.engines.mailbox import Mailbox
from dynamo_sdk.engines.stateless import TICKET
from dynamo_sdk.errors import EngineFailed, InvalidRequest, Overloaded
from dynamo_sdk.interfaces import ItemSource
from dynamo_sdk.runtime.clock import Clock, TimerHandle
from dynamo_sdk.scheduling import SequenceUpdate
from dynamo_sdk.types import (
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
    TokenLogprobs,
)

from .core import MockerCore, StepResult

MAX_LAG_S = 0.1

_log = logging.getLogger(__name__)


class RankSource(Mailbox, ItemSource[GenerateChunk]):
    """One request's tokens; ``close`` takes the request off the rank."""

    __slots__ = ("_rank",)

    def __init__(self, rank: Rank, request: GenerateRequest, arrival_s: float) -> None:
        super().__init__(request, arrival_s=arrival_s, ticket=TICKET)
        self._rank: Rank | None = rank

    def close(self) -> None:
        rank, self._rank, self._on_ready = self._rank, None, None
        if rank is not None:
            rank.leave(self)


class Rank:
    """``on_empty`` is called whenever the last consumer of this rank has left."""

    def __init__(
        self,
        core: MockerCore,
        clock: Clock,
        *,
        max_num_waiting: int,
        kv_events: Feed[KVEventBatch],
        metrics: Feed[ForwardPassMetrics],
        on_empty: Callable[[], None],
    ) -> None:
        self.core = core
        self._clock = clock
        self._max_num_waiting = max_num_waiting
        self._kv_events = kv_events
        self._metrics = metrics
        self._on_empty = on_empty
        self._mailboxes: dict[str, RankSource] = {}  # of requests that the core still works on
        self._num_consumers = 0
        self._failure: str | None = None
        self._timer: TimerHandle | None = None
        self._due_s = 0.0  # when the timer should run
        self._result: StepResult | None = None  # the step under way,
        self._letters: list[tuple[RankSource, SequenceUpdate]] = []  # its tokens,
        self._events: list[KVEventBatch] = []  # and what the core has said but nobody was told yet

    @property
    def num_consumers(self) -> int:
        return self._num_consumers

    # -- requests

    def add(self, request: GenerateRequest) -> RankSource:
        """Queue a request. Whoever calls this closes what it gets. Raises ``InvalidRequest``, ``Overloaded``,
        ``EngineFailed``."""
        if self._failure is not None:
            raise EngineFailed(self._failure)
        if self.core.num_waiting >= self._max_num_waiting:
            raise Overloaded(f"{self._max_num_waiting} requests are already waiting")
        if request.request_id in self._mailboxes:
            raise InvalidRequest(
                f"request id {request.request_id!r} is already in use on this worker", param="request_id"
            )
        now_s = self._clock.now_s()
        self.core.add(request, now_s)
        mailbox = self._mailboxes[request.request_id] = RankSource(self, request, now_s)
        self._num_consumers += 1
        if self._result is None:
            self._set_timer(now_s)  # the next tick: requests of this one make one batch
        return mailbox

    def leave(self, mailbox: RankSource) -> None:
        """For ``RankSource.close``: the consumer is gone. Whatever the request still held is free when this
        returns."""
        request_id = mailbox.request.request_id
        if self._mailboxes.get(request_id) is mailbox:
            del self._mailboxes[request_id]
            self.core.abort(request_id)
            if self._result is None and self.core.has_requests:
                self._set_timer(self._clock.now_s())  # somebody may have waited for its blocks
        self._num_consumers -= 1
        if not self._num_consumers:
            self._on_empty()

    def stop(self, reason: str) -> None:
        """Fail everybody, now and later. Idempotent."""
        self._failure = self._failure or reason
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._result = None
        self._letters.clear()
        mailboxes, self._mailboxes = self._mailboxes, {}
        for request_id, mailbox in mailboxes.items():
            self.core.abort(request_id)
            mailbox.fail(EngineFailed(reason))

    def load(self) -> LoadSnapshot:
        """How busy this rank is. Requests whose last token is still to come count as running; blocks and
        waiting tokens are those that the step under way leaves."""
        load = self.core.load(self._clock.now_s())
        num_ending = sum(
            update.finish_reason is not None and self._mailboxes.get(update.request_id) is mailbox
            for mailbox, update in self._letters
        )
        return msgspec.structs.replace(load, num_running=load.num_running + num_ending)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up."""
        self.core.check_integrity()
        assert len(self._mailboxes) <= self._num_consumers, "a request has no consumer"
        is_asleep = self._timer is None
        assert not (is_asleep and self._result), "a step never ends"

    # -- steps

    def _set_timer(self, due_s: float) -> None:
        """Run ``_tick`` at ``due_s``, or when it would run anyway if that is sooner."""
        if self._timer is not None:
            if self._due_s <= due_s:
                return
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._clock.call_at(due_s, self._tick)

    def _tick(self) -> None:
        """End the step under way, or begin one. By turns, so that between two steps consumers run: what
        was delivered goes out before the next step is put together, and a cancellation gets through."""
        self._timer = None
        if self._result is not None:
            self._end(self._result, self._clock.now_s())
            self._set_timer(self._due_s)
            return
        now_s = self._clock.now_s()
        start_s = self._due_s if now_s - self._due_s <= MAX_LAG_S else now_s
        try:
            result = self.core.step(start_s)
        except Exception as error:  # the timing model's, most likely
            _log.exception("a simulated step failed")
            self.stop(f"a simulated step failed: {error!r}")
            return
        if result is not None:
            self._begin(result)
            self._set_timer(start_s + result.duration_s)
            return
        self._publish(self.core.take_kv_events())
        if (next_s := self.core.next_transfer_s) is not None:
            self._set_timer(next_s)

    def _begin(self, result: StepResult) -> None:
        """Address the step's letters now: an id may be another request's when they are due."""
        self._result = result
        mailboxes = self._mailboxes
        for admission in result.admitted:
            mailboxes[admission.request_id].mark_scheduled(
                result.started_s,
                transfer_s=admission.transfer_s + admission.load_s,
                transfer_bytes=admission.transfer_bytes + admission.load_bytes,
            )
        self._letters = [(mailboxes[update.request_id], update) for update in result.updates]
        if result.events is not None:
            self._events.append(result.events)

    def _end(self, result: StepResult, now_s: float) -> None:
        self._result = None
        mailboxes = self._mailboxes
        letters, self._letters = self._letters, []
        for mailbox, update in letters:
            # Before the put, in which the consumer may leave: the rank is done with the request.
            if update.finish_reason is not None and mailboxes.get(update.request_id) is mailbox:
                del mailboxes[update.request_id]
            mailbox.put(
                update.token_id,
                _certain(update.token_id, mailbox.request) if mailbox.wants_logprobs else None,
                update.finish_reason,
                num_cached_tokens=update.num_cached_tokens,
                now_s=now_s,
            )
        self._publish(None)
        if self._metrics.has_listeners:
            self._metrics.publish(result.metrics)

    # -- events

    def kv_snapshot(self) -> KVEventBatch:
        changes, snapshot = self.core.kv_snapshot()
        self._publish(changes)  # what has happened so far is part of the snapshot
        return snapshot

    def _publish(self, batch: KVEventBatch | None) -> None:
        """Tell what was not told yet, ``batch`` last."""
        if batch is not None:
            self._events.append(batch)
        events, self._events = self._events, []
        for event in events:
            self._kv_events.publish(event)


def _certain(token_id: int, request: GenerateRequest) -> TokenLogprobs:
    """All probability is on the token that was said."""
    return TokenLogprobs(0.0, ((token_id, 0.0),) if request.sampling.logprobs else ())
