"""``check_kv_connector``: does anybody's connector keep the promises of ``KVConnector``?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerId, WorkerRecord

from .report import CheckFailed, NotApplicable, Report, require, run_checks_sync, subject_of
from .streams import generate_request


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorBench:
    """``name``: under which the connector is installed. ``answer``: makes what a prefill leg of its engine
    would answer with."""

    factory: Callable[[], KVConnector]
    name: str
    answer: Callable[[GenerateRequest], KVTransferParams | None]

    def decode_ticket(self, request: GenerateRequest) -> KVTransferParams:
        connector = self.factory()
        is_rendezvous = connector.handover is Handover.RENDEZVOUS
        answer = None if is_rendezvous else self.answer(request)
        return connector.decode_ticket(request, worker_record("prefill", Role.PREFILL), answer)


def worker_record(name: str, role: Role) -> WorkerRecord:
    """A ready worker on a socket of this host."""
    return WorkerRecord(
        worker_id=WorkerId(name), service=name, replica=0, address=f"unix:/{name}", is_ready=True, role=role
    )


def declares_its_handover(bench: ConnectorBench) -> None:
    """``handover`` is a ``Handover``, and ``first_token`` names one of the two legs."""
    connector = bench.factory()
    require(isinstance(connector.handover, Handover), f"handover is {connector.handover!r}")
    require(connector.first_token in (Role.PREFILL, Role.DECODE), f"first_token is {connector.first_token!r}")


def engine_args_are_text(bench: ConnectorBench) -> None:
    """``engine_args`` maps names to text for every role, and says the same each time."""
    connector = bench.factory()
    for role in Role:
        args = connector.engine_args(role)
        is_text = isinstance(args, dict) and all(
            isinstance(part, str) for item in args.items() for part in item
        )
        require(is_text, f"engine_args({role}) is {args!r}")
        require(args == connector.engine_args(role), f"engine_args({role}) differs from call to call")


def prefill_ticket_bears_its_name(bench: ConnectorBench) -> None:
    """What goes with the prefill leg bears the connector's name; a rendezvous has it before any leg runs."""
    connector, request = bench.factory(), generate_request()
    is_rendezvous = connector.handover is Handover.RENDEZVOUS
    decode = worker_record("decode", Role.DECODE) if is_rendezvous else None
    ticket = connector.prefill_ticket(request, worker_record("prefill", Role.PREFILL), decode)
    if ticket is None:
        require(not is_rendezvous, "a rendezvous connector has no ticket for the prefill leg")
        return
    require(ticket.connector == bench.name, f"the ticket bears {ticket.connector!r}, not {bench.name!r}")


def decode_ticket_bears_its_name(bench: ConnectorBench) -> None:
    """What goes with the decode leg bears the connector's name, and its life time is positive."""
    ticket = bench.decode_ticket(generate_request())
    require(ticket.connector == bench.name, f"the ticket bears {ticket.connector!r}, not {bench.name!r}")
    require(ticket.ttl_s is None or ticket.ttl_s > 0, f"the ticket lives for {ticket.ttl_s} s")


def rendezvous_pairs_the_legs(bench: ConnectorBench) -> None:
    """For a rendezvous, requests in flight at once have different tickets."""
    connector = bench.factory()
    if connector.handover is not Handover.RENDEZVOUS:
        raise NotApplicable("the hand-over is sequential")
    prefill, decode = worker_record("prefill", Role.PREFILL), worker_record("decode", Role.DECODE)
    requests = [generate_request() for _ in range(20)]
    for side, tickets in (
        ("prefill", [connector.prefill_ticket(request, prefill, decode) for request in requests]),
        ("decode", [connector.decode_ticket(request, prefill, None) for request in requests]),
    ):
        payloads = {ticket.payload for ticket in tickets if ticket is not None}
        require(
            len(payloads) == len(requests), f"{len(requests)} requests have {len(payloads)} {side} tickets"
        )


def strange_answer_is_a_transfer_error(bench: ConnectorBench) -> None:
    """An answer that is not the connector's own raises ``TransferError``, so that the flow prefills again."""
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
    rendezvous_pairs_the_legs,
    strange_answer_is_a_transfer_error,
)


def check_kv_connector(
    factory: Callable[[], KVConnector],
    *,
    name: str,
    answer: Callable[[GenerateRequest], KVTransferParams | None] = lambda request: None,
) -> Report:
    """Run every connector check. ``factory()`` makes a new connector, ``name`` is what it is installed as.
    ``answer(request)``: what a prefill worker would hand over, for sequential connectors that need it."""
    subject = subject_of(factory())
    return run_checks_sync(
        subject, CONNECTOR_CHECKS, ConnectorBench(factory=factory, name=name, answer=answer)
    )
