"""``check_kv_connector``: does anybody's connector keep the promises of ``KVConnector``?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role

from .kit import Kit
from .places import Subject
from .report import CheckFailed, NotApplicable, Report, require
from .streams import generate_request, worker_record


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorBench:
    """``name``: under which the connector is installed. ``answer``: makes what a prefill leg of its engine
    would answer with; None = an answer that bears the name and nothing that could be read."""

    factory: Callable[[], KVConnector]
    name: str
    answer: Callable[[GenerateRequest], KVTransferParams | None] | None

    def decode_ticket(self, request: GenerateRequest) -> KVTransferParams:
        """Of a new connector. Skips the check where the connector reads answers and none was given."""
        connector, prefill = self.factory(), worker_record("prefill", Role.PREFILL)
        is_rendezvous = connector.handover is Handover.RENDEZVOUS
        if is_rendezvous:
            answer = connector.prefill_ticket(request, prefill, worker_record("decode", Role.DECODE))
        else:
            answer = self.answer_to(request)
        try:
            return connector.decode_ticket(request, prefill, answer)
        except TransferError as error:
            if self.answer is None and not is_rendezvous:
                raise NotApplicable(
                    f"it reads what prefill legs answer, and none was given: {error}"
                ) from error
            raise

    def answer_to(self, request: GenerateRequest) -> KVTransferParams | None:
        if self.answer is not None:
            return self.answer(request)
        return KVTransferParams(connector=self.name, payload=request.request_id.encode(), ttl_s=60.0)

    def require_a_real_answer(self, tickets: list[KVTransferParams]) -> None:
        """Skip the check where only a made-up answer showed that all tickets are the same: real ones may be
        the same too, as for engines that move nothing."""
        if self.answer is None and tickets[0].payload == tickets[1].payload:
            raise NotApplicable("its tickets do not depend on what prefill legs answer")


def declares_its_handover(bench: ConnectorBench) -> None:
    """``handover`` is a ``Handover``, and ``first_token`` names one of the two legs.

    The request flow chooses its steps by both. Set them as class attributes.
    """
    connector = bench.factory()
    require(isinstance(connector.handover, Handover), f"handover is {connector.handover!r}")
    require(connector.first_token in (Role.PREFILL, Role.DECODE), f"first_token is {connector.first_token!r}")


def engine_args_are_text(bench: ConnectorBench) -> None:
    """``engine_args`` maps names to text for every role, and says the same each time.

    They become part of the plan, which is compiled twice and compared. Write numbers as text; draw ports
    and ids elsewhere.
    """
    connector = bench.factory()
    for role in Role:
        args = connector.engine_args(role)
        is_text = isinstance(args, dict) and all(
            isinstance(part, str) for item in args.items() for part in item
        )
        require(is_text, f"engine_args({role}) is {args!r}")
        require(args == connector.engine_args(role), f"engine_args({role}) differs from call to call")


def prefill_ticket_bears_its_name(bench: ConnectorBench) -> None:
    """What goes with the prefill leg bears the connector's name; a rendezvous has it before any leg runs.

    The name tells engines whose ticket they hold. Use the name under which the connector is installed.
    """
    connector, request = bench.factory(), generate_request()
    is_rendezvous = connector.handover is Handover.RENDEZVOUS
    decode = worker_record("decode", Role.DECODE) if is_rendezvous else None
    ticket = connector.prefill_ticket(request, worker_record("prefill", Role.PREFILL), decode)
    if ticket is None:
        require(not is_rendezvous, "a rendezvous connector has no ticket for the prefill leg")
        return
    require(ticket.connector == bench.name, f"the ticket bears {ticket.connector!r}, not {bench.name!r}")


def decode_ticket_bears_its_name(bench: ConnectorBench) -> None:
    """What goes with the decode leg bears the connector's name, and its life time is positive.

    A ticket that is dead on arrival makes every request be prefilled twice. None means that the engine guards
    its blocks itself.
    """
    ticket = bench.decode_ticket(generate_request())
    require(ticket.connector == bench.name, f"the ticket bears {ticket.connector!r}, not {bench.name!r}")
    require(ticket.ttl_s is None or ticket.ttl_s > 0, f"the ticket lives for {ticket.ttl_s} s")


def answer_reaches_decode(bench: ConnectorBench) -> None:
    """What two prefill legs answered leads to two different tickets, unless the answers are equal.

    The answer says where the blocks are; a connector that drops it sends decode to the wrong place. Pass the
    payload on, or wrap it.
    """
    connector = bench.factory()
    if connector.handover is Handover.RENDEZVOUS:
        raise NotApplicable("a rendezvous has no answer")
    requests = [generate_request() for _ in range(2)]
    answers = [bench.answer_to(request) for request in requests]
    if answers[0] is None or answers[0] == answers[1]:
        raise NotApplicable("prefill legs all answer the same")
    tickets = [bench.decode_ticket(request) for request in requests]
    bench.require_a_real_answer(tickets)
    require(tickets[0] != tickets[1], "two different answers became the same ticket")


def ticket_lives_no_longer_than_its_answer(bench: ConnectorBench) -> None:
    """The decode ticket's ``ttl_s`` is at most the answer's.

    The prefill worker counts from when it answered; past its deadline the blocks belong to somebody else.
    Copy ``ttl_s``, do not set a new one.
    """
    connector = bench.factory()
    if connector.handover is Handover.RENDEZVOUS:
        raise NotApplicable("a rendezvous has no answer")
    request = generate_request()
    answer = bench.answer_to(request)
    if answer is None or answer.ttl_s is None:
        raise NotApplicable("no answer of a prefill leg was given, or it has no end")
    ticket = bench.decode_ticket(request)
    bench.require_a_real_answer([ticket, bench.decode_ticket(generate_request())])
    require(
        ticket.ttl_s is not None and ticket.ttl_s <= answer.ttl_s,
        f"an answer that lives for {answer.ttl_s} s became a ticket that lives for {ticket.ttl_s} s",
    )


def is_pure(bench: ConnectorBench) -> None:
    """A ticket depends on nothing but the request, the workers and the answer.

    A second frontend, a retry and a replay ask again. Two new connectors, asked the same, say the same.
    """
    request = generate_request()
    tickets = [bench.decode_ticket(request) for _ in range(2)]
    require(tickets[0] == tickets[1], "two connectors made different tickets of one request")


def rendezvous_pairs_the_legs(bench: ConnectorBench) -> None:
    """For a rendezvous, requests in flight at once have different tickets.

    Two requests that meet in one room swap their KV. Derive the room from the request's id.
    """
    connector = bench.factory()
    if connector.handover is not Handover.RENDEZVOUS:
        raise NotApplicable("the hand-over is sequential")
    prefill, decode = worker_record("prefill", Role.PREFILL), worker_record("decode", Role.DECODE)
    requests = [generate_request() for _ in range(20)]
    for side, tickets in (
        ("prefill", [connector.prefill_ticket(request, prefill, decode) for request in requests]),
        ("decode", [bench.decode_ticket(request) for request in requests]),
    ):
        payloads = {ticket.payload for ticket in tickets if ticket is not None}
        require(
            len(payloads) == len(requests), f"{len(requests)} requests have {len(payloads)} {side} tickets"
        )


def strange_answer_is_a_transfer_error(bench: ConnectorBench) -> None:
    """An answer that is not the connector's own raises ``TransferError``, so that the flow prefills again.

    A prefill worker of another version or environment may answer anything. Look at ``answer.connector``
    first.
    """
    connector = bench.factory()
    if connector.handover is Handover.RENDEZVOUS:
        raise NotApplicable("a rendezvous has no answer")
    strange = KVTransferParams(connector="somebody-else", payload=b"\xff\x00nonsense")
    try:
        connector.decode_ticket(generate_request(), worker_record("prefill", Role.PREFILL), strange)
    except TransferError:
        return
    raise CheckFailed("a ticket of another connector was accepted")


CONNECTOR_CHECKS = (
    declares_its_handover,
    engine_args_are_text,
    prefill_ticket_bears_its_name,
    decode_ticket_bears_its_name,
    answer_reaches_decode,
    ticket_lives_no_longer_than_its_answer,
    is_pure,
    rendezvous_pairs_the_legs,
    strange_answer_is_a_transfer_error,
)


def kv_connector_kit(
    factory: Callable[[], KVConnector],
    *,
    name: str,
    answer: Callable[[GenerateRequest], KVTransferParams | None] | None = None,
) -> Kit[ConnectorBench]:
    """The connector checks, ready to run.

    ``factory()`` makes a new connector, ``name`` is what it is installed as. ``answer(request)``: what a
    prefill worker would hand over, the same each time; None = something that only bears the name.
    """
    bench = ConnectorBench(factory=factory, name=name, answer=answer)
    return Kit(subject=Subject.of(factory()), checks=CONNECTOR_CHECKS, bench=bench)


def check_kv_connector(
    factory: Callable[[], KVConnector],
    *,
    name: str,
    answer: Callable[[GenerateRequest], KVTransferParams | None] | None = None,
) -> Report:
    """Run every connector check; the arguments are those of ``kv_connector_kit``."""
    return kv_connector_kit(factory, name=name, answer=answer).run_now()
