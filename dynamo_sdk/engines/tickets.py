"""Tickets of engines whose memory is not ours: good for a time, for one request, and once.

What is inside is the engine's own. A decode that reads after prefill has given its blocks away may get
another prompt's KV without an error, so a ticket carries the time at which it ends, and its reader refuses
one that is over or was used before.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec

from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.types import KVTransferParams, WorkerRecord


class DatedTicket(Protocol):
    """What stands in a payload. ``expires_at_s``: by the wall clock of the prefill worker's host."""

    @property
    def expires_at_s(self) -> float: ...


TicketT = TypeVar("TicketT", bound=DatedTicket)
NameT = TypeVar("NameT")


def passed_on(connector: str, prefill: WorkerRecord, answer: KVTransferParams | None) -> KVTransferParams:
    """Prefill's ticket as decode's. Raises ``TransferError`` unless it is ``connector``'s."""
    if answer is None or answer.connector != connector:
        given = "no ticket" if answer is None else f"a ticket of {answer.connector!r}"
        raise TransferError(f"worker {prefill.worker_id} answered with {given}, not {connector!r}")
    return answer


def read_ticket(
    ticket: KVTransferParams, kind: type[TicketT], *, connector: str, reader: str, now_s: float
) -> TicketT:
    """The payload of a ticket that is not over; ``now_s`` is wall-clock time, ``reader`` names the engine.

    Raises ``TicketExpired`` and ``TicketUnknown``.
    """
    if ticket.connector != connector:
        raise TicketUnknown(f"{reader} reads no tickets of {ticket.connector!r}")
    try:
        decoded = msgspec.msgpack.decode(ticket.payload, type=kind)
    except msgspec.MsgspecError as error:
        raise TicketUnknown(f"the ticket cannot be read: {error}") from error
    late_s = now_s - decoded.expires_at_s
    if late_s >= 0 or (ticket.ttl_s is not None and ticket.ttl_s <= 0):
        raise TicketExpired(
            f"the ticket ran out {max(0.0, late_s):.1f} s ago; if all do, the hosts' clocks differ"
        )
    return decoded


class SpentTickets(Generic[NameT]):
    """Remembers tickets by name until they have run out."""

    def __init__(self) -> None:
        self._seen: dict[NameT, float] = {}  # when they run out, the earliest seen first

    def __len__(self) -> int:
        return len(self._seen)

    def spend(self, name: NameT, *, shown: str, expires_at_s: float, now_s: float) -> None:
        """Raises ``TicketUnknown`` when it was spent before; ``shown`` says which it is."""
        if name in self._seen:
            raise TicketUnknown(f"{shown} was used before")
        for old, end_s in list(self._seen.items()):
            if end_s > now_s:
                break
            del self._seen[old]
        self._seen[name] = expires_at_s
