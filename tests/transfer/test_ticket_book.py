"""The ticket's state machine against a naive model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.transfer import TicketBook, TicketState

LEASE_S = 5.0
requests = st.integers(0, 4).map("request-{}".format)


class TicketBookMachine(RuleBasedStateMachine):
    """The model: a list of every ticket ever issued, searched from the front each time."""

    def __init__(self) -> None:
        super().__init__()
        self.book: TicketBook[str] = TicketBook()
        self.now_s = 0.0
        self.tickets: list[dict] = []
        self.released: list[str] = []

    def live(self, request_id: str) -> dict | None:
        states = (TicketState.ISSUED, TicketState.FETCHING)
        return next((t for t in self.tickets if t["request"] == request_id and t["state"] in states), None)

    def pick(self, number: int) -> dict:
        return self.tickets[number % len(self.tickets)]

    def end(self, ticket: dict, state: TicketState) -> None:
        ticket["state"] = state
        ticket["ended"] = True

    @rule(request_id=requests, ttl_s=st.integers(0, 12))
    def issue(self, request_id: str, ttl_s: int) -> None:
        ticket_id = f"ticket-{len(self.tickets)}".encode()
        deadline_s = self.now_s + ttl_s
        if self.live(request_id) is not None:
            with pytest.raises(TransferError, match="revoke"):
                self.book.issue(ticket_id, request_id, "unused", deadline_s=deadline_s)
            return
        self.book.issue(ticket_id, request_id, ticket_id.decode(), deadline_s=deadline_s)
        self.tickets.append(
            {"id": ticket_id, "request": request_id, "state": TicketState.ISSUED, "deadline": deadline_s}
        )

    @precondition(lambda self: self.tickets)
    @rule(number=st.integers(0, 1000))
    def claim(self, number: int) -> None:
        ticket = self.pick(number)
        if ticket["state"] is TicketState.ISSUED and self.now_s < ticket["deadline"]:
            assert self.book.claim(ticket["id"], now_s=self.now_s, lease_s=LEASE_S) == ticket["id"].decode()
            ticket["state"] = TicketState.FETCHING
            ticket["deadline"] = self.now_s + LEASE_S
        else:
            with pytest.raises(self.refusal(ticket)):
                self.book.claim(ticket["id"], now_s=self.now_s, lease_s=LEASE_S)

    @precondition(lambda self: self.tickets)
    @rule(number=st.integers(0, 1000))
    def join(self, number: int) -> None:
        ticket = self.pick(number)
        if ticket["state"] is TicketState.FETCHING and self.now_s < ticket["deadline"]:
            assert self.book.join(ticket["id"], now_s=self.now_s) == ticket["id"].decode()
        else:
            with pytest.raises(self.refusal(ticket)):
                self.book.join(ticket["id"], now_s=self.now_s)

    @precondition(lambda self: self.tickets)
    @rule(number=st.integers(0, 1000))
    def finish(self, number: int) -> None:
        ticket = self.pick(number)
        if ticket["state"] is TicketState.FETCHING and self.now_s < ticket["deadline"]:
            self.released.append(self.book.finish(ticket["id"], now_s=self.now_s))
            self.end(ticket, TicketState.DONE)
        else:
            with pytest.raises(self.refusal(ticket)):
                self.book.finish(ticket["id"], now_s=self.now_s)

    def refusal(self, ticket: dict) -> type[TransferError]:
        is_late = "ended" not in ticket and ticket["deadline"] <= self.now_s
        return TicketExpired if is_late or ticket["state"] is TicketState.EXPIRED else TicketUnknown

    @precondition(lambda self: self.tickets)
    @rule(number=st.integers(0, 1000))
    def abandon(self, number: int) -> None:
        ticket = self.pick(number)
        held = self.book.abandon(ticket["id"])
        if ticket["state"] is TicketState.FETCHING:
            assert held is not None
            self.released.append(held)
            self.end(ticket, TicketState.ABANDONED)
        else:
            assert held is None

    @rule(request_id=requests)
    def revoke(self, request_id: str) -> None:
        ticket = self.live(request_id)
        held = self.book.revoke(request_id)
        if ticket is None:
            assert held is None
        else:
            assert held == ticket["id"].decode()
            self.released.append(held)
            self.end(ticket, TicketState.REVOKED)

    @rule(seconds=st.integers(0, 6))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule()
    def expire(self) -> None:
        due = [t for t in self.tickets if "ended" not in t and t["deadline"] <= self.now_s]
        held = self.book.expire(self.now_s)
        assert sorted(held) == sorted(t["id"].decode() for t in due)
        self.released += held
        for ticket in due:
            self.end(ticket, TicketState.EXPIRED)

    @rule()
    def revoke_all(self) -> None:
        self.released += self.book.revoke_all()
        for ticket in self.tickets:
            if "ended" not in ticket:
                self.end(ticket, TicketState.REVOKED)

    @invariant()
    def agrees(self) -> None:
        self.book.check_integrity()
        assert all(self.book.state(t["id"]) is t["state"] for t in self.tickets)
        live = [t["deadline"] for t in self.tickets if "ended" not in t]
        assert len(self.book) == len(live)
        assert self.book.next_deadline_s() == (min(live) if live else None)

    @invariant()
    def released_exactly_once(self) -> None:
        assert sorted(self.released) == sorted(t["id"].decode() for t in self.tickets if "ended" in t)


TestTicketBook = TicketBookMachine.TestCase
TestTicketBook.settings = settings(max_examples=60, stateful_step_count=40)


def test_an_unknown_ticket_is_unknown() -> None:
    book: TicketBook[str] = TicketBook()
    with pytest.raises(TicketUnknown, match="never issued"):
        book.claim(b"?", now_s=0, lease_s=1)


def test_a_claim_outlives_the_deadline_but_not_the_lease() -> None:
    book: TicketBook[str] = TicketBook()
    book.issue(b"t", "r", "blocks", deadline_s=10)
    book.claim(b"t", now_s=9, lease_s=30)
    assert book.expire(38.9) == []
    assert book.expire(39) == ["blocks"]
    with pytest.raises(TicketExpired):
        book.finish(b"t", now_s=39)


def test_memory_of_ended_tickets_is_bounded() -> None:
    book: TicketBook[str] = TicketBook(max_remembered=10)
    for number in range(1000):
        book.issue(f"{number}".encode(), "r", "blocks", deadline_s=1e9)
        book.revoke("r")
        book.check_integrity()
    assert book.state(b"999") is TicketState.REVOKED
    assert book.state(b"1") is None
