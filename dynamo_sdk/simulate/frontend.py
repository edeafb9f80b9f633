"""``Frontend``: requests of a workload, through their flows and the routers, to the workers of the fleet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

from dynamo_sdk.engines.mocker import Admission
from dynamo_sdk.engines.stateless import TICKET, StatelessConnector
from dynamo_sdk.errors import DynamoError, EngineFailed, Unavailable
from dynamo_sdk.flow import Action, Fail, FlowConfig, Observe, RequestFlow, Route, Send
from dynamo_sdk.interfaces import Router, RoutingContext, RoutingRequest
from dynamo_sdk.kv import PrefixKeys
from dynamo_sdk.kv.prefix_keys import extend_keys
from dynamo_sdk.scheduling import SequenceUpdate
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    Role,
    SamplingParams,
    Usage,
)

from .arrivals import Arrival, Workload
from .fleet import Fleet, SimWorker
from .prompts import Prompt, PromptBook, own_token
from .rank import Gaps, SimRank
from .record import RequestRecord
from .spec import SimOptions
from .timeline import Order, Timeline

MODEL = "simulated"


@dataclass(slots=True)
class _Call:
    """A request under way. ``leg`` runs on ``worker``; the flow has seen ``num_told`` of its tokens."""

    record: RequestRecord
    flow: RequestFlow
    prompt: Prompt
    leg: Role = Role.AGGREGATED
    worker: SimWorker | None = None
    num_told: int = 0
    told_s: float = 0.0
    keys: PrefixKeys | None = None


class Frontend:
    """Chooses workers as the live one does, with the same book, flows and routers; and keeps the records."""

    def __init__(
        self,
        workload: Workload,
        timeline: Timeline,
        routers: Mapping[Role, Router],
        options: SimOptions,
        *,
        block_size: int,
    ) -> None:
        self.records: list[RequestRecord] = []
        self.gaps = Gaps()  # between the last token of one leg and the first of the next
        self.fleet = Fleet(
            timeline, options, self, has_overlaps=any(router.uses_overlap for router in routers.values())
        )
        self._timeline = timeline
        self._routers = routers
        self._block_size = block_size
        self._prompts = PromptBook(block_tokens=workload.block_tokens, block_size=block_size)
        self._context = partial(RoutingContext, rng=Random(options.seed))
        self._config = FlowConfig(connector=StatelessConnector() if Role.PREFILL in routers else None)
        self._calls: dict[str, _Call] = {}
        self._sessions: dict[str, deque[Arrival]] = {}
        for arrival in workload.arrivals:
            if arrival.is_relative and arrival.session is not None:
                self._sessions.setdefault(arrival.session, deque()).append(arrival)
        self._num_to_come = len(workload.arrivals)
        self._follow(iter([arrival for arrival in workload.arrivals if not arrival.is_relative]))

    @property
    def has_work(self) -> bool:
        """Requests are under way or still to come."""
        return bool(self._calls or self._num_to_come)

    # -- requests

    def _follow(self, arrivals: Iterator[Arrival]) -> None:
        """One after the other, each at its time."""
        arrival = next(arrivals, None)
        if arrival is not None:
            self._timeline.at(arrival.at_s, Order.ARRIVAL, partial(self._arrive, arrival, arrivals))

    def _arrive(self, arrival: Arrival, others: Iterator[Arrival] | None) -> None:
        self._num_to_come -= 1
        index = len(self.records)
        request_id = str(index)
        prompt = self._prompts.prompt(arrival, index)
        record = RequestRecord(
            index=index,
            arrival_s=self._timeline.now_s,
            num_input_tokens=arrival.num_input_tokens,
            num_output_tokens=arrival.num_output_tokens,
            session=arrival.session,
            workers=[],
        )
        self.records.append(record)
        request = GenerateRequest(
            request_id=request_id,
            model=MODEL,
            prompt=prompt.tokens,
            sampling=SamplingParams(
                max_tokens=arrival.num_output_tokens,
                temperature=0.0,
                ignore_eos=True,
                seed=own_token(index, is_output=True),
            ),
            priority=arrival.priority,
        )
        call = self._calls[request_id] = _Call(record, RequestFlow(request, self._config), prompt)
        self._carry_out(call, call.flow.start())
        if others is not None:
            self._follow(others)

    def _carry_out(self, call: _Call, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Observe(pool, fact):
                    now_s = self._timeline.now_s
                    self.fleet.book.observe(fact, now_s)
                    self._routers[pool].observe(fact, now_s)
                case Route():
                    self._carry_out(call, self._choose(call, action))
                case Send(leg, record, request):
                    self._carry_out(
                        call, self._send(call, leg, self.fleet.workers[record.worker_id], request)
                    )
                case Fail(error):
                    call.record.error = f"{type(error).__name__}: {error}"
                    self._end(call)
                case _:
                    pass  # tokens are counted as they come; nothing is held for those who give up

    def _choose(self, call: _Call, ask: Route) -> list[Action]:
        flow, request, fleet = call.flow, call.flow.request, self.fleet
        pool = fleet.pool(ask.pool)
        candidates = [] if pool is None else pool.candidates
        if ask.excluded:
            candidates = [found for found in candidates if found.worker_id not in ask.excluded]
        if pool is None or not candidates:
            return flow.not_routed(ask.pool, Unavailable(f"no {ask.pool} worker can take the request now"))
        router, now_s = self._routers[ask.pool], self._timeline.now_s
        keys: PrefixKeys | None = None
        if router.uses_overlap:
            keys = call.keys = call.keys or extend_keys(0, 0, call.prompt.hashes)
            fleet.book.look_up(keys, now_s)
        try:
            decision = router.select(
                RoutingRequest(
                    request_id=request.request_id,
                    model=MODEL,
                    role=ask.pool,
                    num_tokens=ask.num_tokens,
                    block_size=pool.block_size,
                    block_keys=() if keys is None else keys,
                    max_output_tokens=request.sampling.max_tokens,
                    priority=request.priority,
                    session=call.record.session,
                ),
                candidates,
                self._context(now_s=now_s),
            )
        except DynamoError as error:
            return flow.not_routed(ask.pool, error)
        seat = (decision.worker_id, decision.dp_rank)
        chosen = next((found for found in candidates if (found.worker_id, found.dp_rank) == seat), None)
        if chosen is None:
            return flow.not_routed(
                ask.pool, EngineFailed(f"the router chose {seat}, which was not a candidate")
            )
        worker = pool.workers[chosen.worker_id]
        num_cached = 0
        if keys is not None:
            fleet.book.sent(chosen, keys, now_s)
            num_cached = fleet.book.cached_tokens(chosen, ask.num_tokens, pool.block_size)
            if call.record.num_predicted_tokens is None:
                call.record.num_predicted_tokens = min(num_cached, call.record.num_input_tokens)
        dp_rank = decision.dp_rank if len(worker.ranks) > 1 else None
        return flow.routed(ask.pool, worker.record, now_s, dp_rank, num_cached)

    def _send(self, call: _Call, leg: Role, worker: SimWorker, request: GenerateRequest) -> list[Action]:
        record = call.record
        call.leg, call.worker, call.num_told = leg, worker, request.num_generated_tokens
        record.workers.append(worker.record.worker_id)
        if record.routed_s is None:
            record.routed_s = self._timeline.now_s
        try:
            self.fleet.send(worker, request, call.prompt.keys)
        except DynamoError as error:
            return call.flow.failed(leg, error)
        return []

    def _end(self, call: _Call) -> None:
        record = call.record
        self._calls.pop(str(record.index), None)
        session = self._sessions.get(record.session) if record.session is not None else None
        if session:
            arrival = session.popleft()
            at_s = self._timeline.now_s + arrival.at_s
            self._timeline.at(at_s, Order.ARRIVAL, partial(self._arrive, arrival, None))

    # -- what ranks tell

    def admitted(self, admission: Admission, at_s: float, *, is_again: bool) -> None:
        call = self._call(admission.request_id)
        record = call.record
        if admission.transfer_bytes or admission.transfer_s:
            record.transfer_s += admission.transfer_s
            record.transfer_bytes += admission.transfer_bytes
        if is_again:
            record.num_preemptions += 1
        elif record.admitted_s is None:
            record.admitted_s = at_s
            record.num_cached_tokens = admission.num_cached_tokens
            record.num_loaded_tokens, record.load_s = admission.num_loaded_tokens, admission.load_s
        record.num_reused_tokens = max(record.num_reused_tokens, admission.num_cached_tokens)

    def answered(self, update: SequenceUpdate, *, is_first: bool) -> None:
        call = self._call(update.request_id)
        record, now_s, reason = call.record, self._timeline.now_s, update.finish_reason
        num_new = update.num_output_tokens - call.num_told
        if is_first and call.num_told:
            self.gaps.add(now_s - call.told_s, 1)
        call.num_told, call.told_s = update.num_output_tokens, now_s
        record.num_tokens = update.num_output_tokens
        if record.first_token_s is None:
            record.first_token_s = now_s
        usage = None
        if reason is not None:
            usage = Usage(record.num_input_tokens, update.num_output_tokens, update.num_cached_tokens)
        chunk = GenerateChunk(
            token_ids=(update.token_id,) * num_new,
            finish_reason=reason,
            usage=usage,
            kv_transfer=TICKET if reason is FinishReason.HANDOVER else None,
        )
        leg, worker = call.leg, call.worker
        actions = call.flow.received(leg, chunk, now_s)
        if reason is not None and reason is not FinishReason.HANDOVER:
            record.last_token_s = now_s
        self._carry_out(call, actions)
        if record.last_token_s is not None:
            self._end(call)
        if reason is not None and worker is not None:
            self.fleet.let_go(worker)

    def changed(self, rank: SimRank, events: KVEventBatch) -> None:
        self.fleet.changed(rank, events)

    def _call(self, leg_id: str) -> _Call:
        """Legs of later attempts have a suffix (see ``RequestFlow``)."""
        return self._calls.get(leg_id) or self._calls[leg_id.partition(".")[0]]
