"""The life of one request as a state machine: facts in, actions out.

::

    state          what is going on                    next
    ADMITTED       asked for a worker                  ROUTED
    ROUTED         rendezvous: asked for the second    PREFILLING
    PREFILLING     the prefill leg runs                TRANSFERRING, DONE (finished by its first token)
    TRANSFERRING   decode was asked to fetch           DECODING
    DECODING       tokens flow; aggregated: from the   DONE
                   start
    DONE FAILED CANCELLED                              nothing

    any state before DONE, a leg fails retryably  ->  ADMITTED, with the tokens so far
    any state before DONE, anything else fails    ->  FAILED
    any state before DONE, cancel                 ->  CANCELLED

A sequential hand-over goes through every row; a rendezvous skips TRANSFERRING, because both legs start
at once; an aggregated request skips PREFILLING and TRANSFERRING. A request that starts again keeps what
the client has: prompt plus emitted tokens are prefilled together, and sampling goes on as if nothing
had happened, because it is a pure function of (logits, seed, position).

When no prefill worker is there, a decode worker runs the whole request (local prefill), unless the
connector says that its engines cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from dynamo_sdk.errors import DynamoError, EngineFailed, Overloaded, TicketExpired, TransferError
from dynamo_sdk.interfaces import Handover, KVConnector, Routed
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVSource,
    KVTransferParams,
    PackedTokens,
    Role,
    WorkerId,
    WorkerRecord,
    pack_tokens,
)

from .actions import Action, CancelLeg, Emit, Fail, Migrated, Observe, ReleaseBlocks, Route, Send
from .answer import Answer
from .leg import Choice, Leg, Ticket

TICKET_MARGIN_S = 0.5
"""A ticket with less time left is not worth sending: the fetch would race its end."""


class FlowState(StrEnum):
    ADMITTED = "admitted"
    ROUTED = "routed"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = frozenset({FlowState.DONE, FlowState.FAILED, FlowState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """``connector``: None = the model is served aggregated. ``max_attempts``: first try included."""

    connector: KVConnector | None = None
    max_attempts: int = 4


@dataclass(slots=True)
class RequestFlow:
    """One request. Call ``start`` once, then report what happens; carry out what comes back, in order.

    Facts about legs that are no longer under way are ignored: they crossed a cancel on the way.
    """

    request: GenerateRequest
    config: FlowConfig
    state: FlowState = FlowState.ADMITTED
    num_attempts: int = 1
    _answer: Answer = field(init=False)
    _legs: dict[Role, Leg] = field(default_factory=dict)
    _workers: dict[Role, WorkerRecord] = field(default_factory=dict)
    _choices: dict[Role, Choice] = field(default_factory=dict)
    _excluded: set[WorkerId] = field(default_factory=set)
    _ticket: Ticket | None = None
    _last_error: DynamoError | None = None

    def __post_init__(self) -> None:
        self._answer = Answer(self.request.num_prompt_tokens)

    @property
    def output(self) -> list[int]:
        """The tokens that the client has."""
        return self._answer.token_ids

    # -- facts

    def start(self) -> list[Action]:
        """Begin. Returns the first ``Route``."""
        return [self._route(Role.AGGREGATED if self.config.connector is None else Role.PREFILL)]

    def routed(
        self,
        pool: Role,
        worker: WorkerRecord,
        now_s: float,
        dp_rank: int | None = None,
        num_cached_tokens: int = 0,
        kv_source: KVSource | None = None,
    ) -> list[Action]:
        """A worker was chosen, and one of its data-parallel ranks if it has several. ``num_cached_tokens``:
        what it should have of the prompt. ``kv_source``: where it may find more."""
        if self.state in OVER:
            return []
        self._choices[pool] = Choice(
            dp_rank=dp_rank, num_cached_tokens=num_cached_tokens, kv_source=kv_source
        )
        connector = self.config.connector
        if connector is None or (
            pool is Role.DECODE and self._ticket is None and Role.PREFILL not in self._workers
        ):
            return self._send(Role.AGGREGATED, pool, worker, self._leg_request(Role.AGGREGATED, pool))
        self._workers[pool] = worker
        if connector.handover is Handover.RENDEZVOUS:
            return self._send_rendezvous(connector)
        if pool is Role.PREFILL:
            self.state = FlowState.ROUTED
            leg = self._leg_request(Role.PREFILL, pool)
            leg = _with_ticket(leg, connector.prefill_ticket(leg, worker, None))
            return self._send(Role.PREFILL, pool, worker, leg)
        return self._send_decode(connector, worker, now_s)

    def not_routed(self, pool: Role, error: DynamoError) -> list[Action]:
        """No worker of ``pool`` can take the request."""
        if self.state in OVER:
            return []
        if pool is Role.PREFILL and self._can_prefill_locally:
            return [self._route(Role.DECODE)]
        return self._fail(self._last_error if isinstance(self._last_error, Overloaded) else error)

    def received(self, leg: Role, chunk: GenerateChunk, now_s: float) -> list[Action]:
        """A leg has answered."""
        current = self._legs.get(leg)
        if current is None:
            return []
        current.saw(chunk)
        actions: list[Action] = []
        if not current.has_answered:
            actions += self._first_answer(leg, current, chunk)
        is_handed_over = chunk.finish_reason is FinishReason.HANDOVER
        if leg is Role.PREFILL and self._is_rendezvous:
            return actions + self._received_beside_decode(chunk)
        self._answer.add_timing(chunk)
        if leg is Role.PREFILL and self._first_token is Role.DECODE:
            chunk = self._answer.set_aside(chunk)
            if chunk.finish_reason is None or is_handed_over:
                chunk = msgspec.structs.replace(chunk, token_ids=(), logprobs=None)
        if is_handed_over:
            return actions + self._hand_over(current, chunk, now_s)
        actions += self._emit(chunk)
        if chunk.finish_reason is not None:
            actions += self._free(leg)
            actions += self._abandon()
            self.state = FlowState.DONE
        return actions

    def failed(self, leg: Role, error: DynamoError) -> list[Action]:
        """A leg has ended with an error, or without a last chunk."""
        current = self._legs.get(leg)
        if current is None:
            return []
        if (culprit := self._culprit(current, error)) is not None:
            self._excluded.add(culprit)
        actions = self._free(leg, is_failure=True)
        if leg is Role.DECODE and self._ticket is not None and isinstance(error, Overloaded):
            return actions + self._ask_another_decode(error)
        if leg is Role.PREFILL and self._has_met:
            return actions
        return actions + self._start_again(error)

    def cancel(self) -> list[Action]:
        """The client has left, or time is up."""
        if self.state in OVER:
            return []
        self.state = FlowState.CANCELLED
        return self._abandon()

    # -- inside: routing and sending

    @property
    def _can_prefill_locally(self) -> bool:
        return self.config.connector is None or self.config.connector.decodes_alone

    @property
    def _has_met(self) -> bool:
        """Rendezvous: decode has a token, so it has all that prefill had to give."""
        decode = self._legs.get(Role.DECODE)
        return self._is_rendezvous and decode is not None and decode.has_answered

    @property
    def _is_rendezvous(self) -> bool:
        return self.config.connector is not None and self.config.connector.handover is Handover.RENDEZVOUS

    def _route(self, pool: Role) -> Route:
        return Route(
            pool,
            num_tokens=self.request.num_prompt_tokens + self.request.num_generated_tokens + len(self.output),
            excluded=frozenset(self._excluded),
            can_wait=self._is_worth_waiting and pool is not Role.PREFILL,
        )

    @property
    def _is_worth_waiting(self) -> bool:
        """A worker died and may come back, before this request or under it; one that is full says so to be
        believed. With a ticket, work is done and tokens may be out: that is not thrown away at once."""
        has_begun = self.num_attempts > 1 or self._ticket is not None
        return has_begun and not isinstance(self._last_error, Overloaded)

    def _leg_request(self, role: Role, pool: Role) -> GenerateRequest:
        """Ids differ between attempts: an old leg may still be dying on the worker that gets the new one."""
        choice = self._choices[pool]
        attempt = "" if self.num_attempts == 1 else f".{self.num_attempts}"
        return msgspec.structs.replace(
            self.request,
            request_id=f"{self.request.request_id}{attempt}",
            generated=PackedTokens(self.request.generated + pack_tokens(self.output)),
            role=role,
            dp_rank=choice.dp_rank,
            kv_source=None if role is Role.DECODE else choice.kv_source,
        )

    def _send(self, leg: Role, pool: Role, worker: WorkerRecord, request: GenerateRequest) -> list[Action]:
        self._legs[leg] = Leg(worker, pool, request)
        self.state = FlowState.PREFILLING if leg is Role.PREFILL else FlowState.DECODING
        if leg is Role.DECODE and not self._is_rendezvous:
            self.state = FlowState.TRANSFERRING
        num_tokens = request.num_prompt_tokens + request.num_generated_tokens
        fact = Routed(
            request_id=request.request_id,
            worker_id=worker.worker_id,
            role=leg,
            num_tokens=num_tokens,
            dp_rank=request.dp_rank or 0,
            num_cached_tokens=self._choices[pool].num_cached_tokens,
        )
        return [Observe(pool, fact), Send(leg, worker, request)]

    def _send_decode(self, connector: KVConnector, worker: WorkerRecord, now_s: float) -> list[Action]:
        ticket = self._ticket
        assert ticket is not None
        leg = self._leg_request(Role.DECODE, Role.DECODE)
        try:
            params = connector.decode_ticket(leg, ticket.worker, ticket.params)
            if params.ttl_s is not None:
                left_s = params.ttl_s - (now_s - ticket.received_s)
                if left_s < TICKET_MARGIN_S:
                    raise TicketExpired(
                        f"the hand-over took {now_s - ticket.received_s:.1f} s, its ticket is over"
                    )
                params = msgspec.structs.replace(params, ttl_s=left_s)
        except TransferError as error:
            return self._start_again(error)
        return self._send(Role.DECODE, Role.DECODE, worker, _with_ticket(leg, params))

    def _send_rendezvous(self, connector: KVConnector) -> list[Action]:
        prefill, decode = self._workers.get(Role.PREFILL), self._workers.get(Role.DECODE)
        if prefill is None or decode is None:
            self.state = FlowState.ROUTED
            return [self._route(Role.PREFILL if prefill is None else Role.DECODE)]
        first = self._leg_request(Role.PREFILL, Role.PREFILL)
        second = self._leg_request(Role.DECODE, Role.DECODE)
        try:
            ours = connector.prefill_ticket(first, prefill, decode)
            theirs = connector.decode_ticket(second, prefill, ours)
        except TransferError as error:
            return self._fail(error)
        return [
            *self._send(Role.PREFILL, Role.PREFILL, prefill, _with_ticket(first, ours)),
            *self._send(Role.DECODE, Role.DECODE, decode, _with_ticket(second, theirs)),
        ]

    # -- inside: answers

    def _first_answer(self, leg: Role, current: Leg, chunk: GenerateChunk) -> list[Action]:
        current.has_answered = True
        if leg is Role.DECODE:
            self.state = FlowState.DECODING
            self._ticket = None  # the blocks have been fetched
        return [Observe(current.pool, current.prefill_done())]

    @property
    def _first_token(self) -> Role:
        return Role.DECODE if self.config.connector is None else self.config.connector.first_token

    def _hand_over(self, current: Leg, chunk: GenerateChunk, now_s: float) -> list[Action]:
        self._ticket = Ticket(current.worker, current.request.request_id, chunk.kv_transfer, now_s)
        return [
            *self._emit(msgspec.structs.replace(chunk, finish_reason=None)),
            *self._free(Role.PREFILL),
            self._route(Role.DECODE),
        ]

    def _received_beside_decode(self, chunk: GenerateChunk) -> list[Action]:
        """Rendezvous: the prefill leg only says that it is done; the tokens come from decode."""
        self._answer.note_usage(chunk)
        self._answer.set_aside(chunk)
        return self._free(Role.PREFILL) if chunk.finish_reason is not None else []

    def _emit(self, chunk: GenerateChunk) -> list[Action]:
        shown = self._answer.add(chunk)
        return [] if shown is None else [Emit(shown)]

    # -- inside: endings

    def _free(self, leg: Role, *, is_failure: bool = False) -> list[Action]:
        current = self._legs.pop(leg)
        return [Observe(current.pool, current.freed(is_failure=is_failure))]

    def _abandon(self) -> list[Action]:
        """Cancel every leg, and give up what a prefill worker holds for us."""
        actions: list[Action] = []
        for leg, current in list(self._legs.items()):
            actions.append(CancelLeg(leg))
            actions += self._free(leg)
            if leg is Role.PREFILL:  # its ticket may be on the way to us
                actions.append(ReleaseBlocks(current.worker.worker_id, current.request.request_id))
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            actions.append(ReleaseBlocks(ticket.worker.worker_id, ticket.request_id))
        self._workers.clear()
        return actions

    def _culprit(self, leg: Leg, error: DynamoError) -> WorkerId | None:
        """Who should not get this request again. A hand-over that failed is the prefill side's fault,
        unless its time was simply over."""
        if isinstance(error, TicketExpired):
            return None
        if isinstance(error, TransferError):
            prefill = self._workers.get(Role.PREFILL)
            return prefill.worker_id if prefill is not None else None
        return leg.worker.worker_id

    def _start_again(self, error: DynamoError) -> list[Action]:
        """From the beginning, with the tokens so far; or the end, where that cannot help."""
        if not error.is_retryable:
            return self._fail(error)
        if self.num_attempts >= self.config.max_attempts:
            gave_up = EngineFailed(f"gave up after {self.num_attempts} attempts: {error}")
            return self._fail(error if isinstance(error, Overloaded) else gave_up)
        actions = self._abandon()
        self.num_attempts += 1
        self.state = FlowState.ADMITTED
        self._last_error = error
        self._answer.forget_set_aside()
        return [*actions, Migrated(error, len(self.output)), *self.start()]

    def _ask_another_decode(self, error: Overloaded) -> list[Action]:
        """A full decode worker has not fetched anything: what prefill did is still there for another."""
        if self.num_attempts >= self.config.max_attempts:
            return self._fail(error)
        self.num_attempts += 1
        self._last_error = error
        return [self._route(Role.DECODE)]

    def _fail(self, error: DynamoError) -> list[Action]:
        actions = self._abandon()
        self.state = FlowState.FAILED
        return [*actions, Fail(error)]


def _with_ticket(leg: GenerateRequest, ticket: KVTransferParams | None) -> GenerateRequest:
    return leg if ticket is None else msgspec.structs.replace(leg, kv_transfer=ticket)
