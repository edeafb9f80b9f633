from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.engines.tickets import SpentTickets, passed_on, read_ticket
from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.types import KVTransferParams, WorkerId, WorkerRecord


class Ticket(msgspec.Struct):
    expires_at_s: float


PREFILL = WorkerRecord(worker_id=WorkerId("p-1"), service="Prefill", replica=0, address="unix:/p-1")


def ticket(*, expires_at_s: float = 100.0, ttl_s: float | None = 30.0) -> KVTransferParams:
    return KVTransferParams(
        connector="own", payload=msgspec.msgpack.encode(Ticket(expires_at_s)), ttl_s=ttl_s
    )


def read(given: KVTransferParams, *, now_s: float = 90.0) -> Ticket:
    return read_ticket(given, Ticket, connector="own", reader="this engine", now_s=now_s)


def test_a_ticket_is_read_until_it_runs_out():
    assert read(ticket()).expires_at_s == 100.0
    with pytest.raises(TicketExpired, match=r"ran out 0\.0 s ago"):
        read(ticket(), now_s=100.0)
    with pytest.raises(TicketExpired):
        read(ticket(ttl_s=0.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (KVTransferParams(connector="other", payload=b""), "this engine reads no tickets of 'other'"),
        (KVTransferParams(connector="own", payload=b"\xc1"), "cannot be read"),
    ],
)
def test_what_is_no_ticket_of_ours_is_refused(given: KVTransferParams, message: str):
    with pytest.raises(TicketUnknown, match=message):
        read(given)


def test_a_ticket_is_good_once_and_forgotten_when_it_has_run_out():
    spent = SpentTickets[str]()
    spent.spend("a", shown="ticket a", expires_at_s=100.0, now_s=90.0)
    with pytest.raises(TicketUnknown, match="ticket a was used before"):
        spent.spend("a", shown="ticket a", expires_at_s=100.0, now_s=95.0)
    spent.spend("b", shown="ticket b", expires_at_s=120.0, now_s=101.0)
    assert len(spent) == 1


def test_only_a_ticket_of_the_connector_is_passed_on():
    assert passed_on("own", PREFILL, ticket()) == ticket()
    with pytest.raises(TransferError, match="no ticket, not 'own'"):
        passed_on("own", PREFILL, None)
    with pytest.raises(TransferError, match="a ticket of 'own', not 'other'"):
        passed_on("other", PREFILL, ticket())
