"""The life of a ticket, as a pure state machine. Whoever holds blocks learns here when to let go.

::

    issue ──> ISSUED ── claim ──> FETCHING ── finish ──> DONE
                │ expire             │ expire (the lease is over)   ──> EXPIRED
                │ revoke             │ revoke                       ──> REVOKED
                                     │ abandon (the reader is gone) ──> ABANDONED

A ticket is live in the first two states. ISSUED ends at the ticket's own deadline. A claim replaces that
deadline by a lease, so that blocks are not given back under a reader that is at work, nor kept for one
that hangs. Every verb that ends a ticket returns what the ticket held; nothing is ever returned twice, so
releasing what is returned is releasing exactly once.

Reading blocks that were given back harms nobody but the reader, and the reader asks ``finish`` before it
believes what it read: that is the point at which the copy counts.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError

T = TypeVar("T")


class TicketState(StrEnum):
    ISSUED = "issued"
    FETCHING = "being fetched"
    DONE = "already used"
    EXPIRED = "expired"
    REVOKED = "revoked"
    ABANDONED = "abandoned by its reader"


@dataclass(slots=True)
class _Live(Generic[T]):
    request_id: str
    holding: T
    deadline_s: float
    state: TicketState = TicketState.ISSUED


class TicketBook(Generic[T]):
    """All tickets of one block server. ``T`` is what a live ticket holds and its end gives back.

    ``max_remembered`` ended tickets are remembered, to answer a late claim with the reason.
    """

    def __init__(self, *, max_remembered: int = 4096) -> None:
        self._live: dict[bytes, _Live[T]] = {}
        self._ticket_of: dict[str, bytes] = {}
        self._ended: dict[bytes, TicketState] = {}
        self._max_remembered = max_remembered
        self._deadlines: list[tuple[float, bytes]] = []  # a heap; entries whose deadline moved are stale

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_fetching(self) -> int:
        return sum(live.state is TicketState.FETCHING for live in self._live.values())

    def state(self, ticket_id: bytes) -> TicketState | None:
        """None: never issued, or forgotten."""
        live = self._live.get(ticket_id)
        return live.state if live is not None else self._ended.get(ticket_id)

    def issue(self, ticket_id: bytes, request_id: str, holding: T, *, deadline_s: float) -> None:
        """Raises ``TransferError`` while the request has a live ticket: its blocks are held under the
        request's name, so the old ticket's end would release the new ticket's blocks."""
        if request_id in self._ticket_of:
            raise TransferError(f"request {request_id} already has a live ticket; revoke that one first")
        self._live[ticket_id] = _Live(request_id, holding, deadline_s)
        self._ticket_of[request_id] = ticket_id
        self._push(deadline_s, ticket_id)

    def claim(self, ticket_id: bytes, *, now_s: float, lease_s: float) -> T:
        """Start to read: valid once, before the deadline. Raises ``TicketUnknown``, ``TicketExpired``."""
        live = self._require(ticket_id, TicketState.ISSUED, now_s)
        live.state = TicketState.FETCHING
        live.deadline_s = now_s + lease_s
        self._push(live.deadline_s, ticket_id)
        return live.holding

    def join(self, ticket_id: bytes, *, now_s: float) -> T:
        """Read along with whoever claimed it, and finishes. Raises ``TicketUnknown``, ``TicketExpired``."""
        return self._require(ticket_id, TicketState.FETCHING, now_s).holding

    def finish(self, ticket_id: bytes, *, now_s: float) -> T:
        """The reader has read. Returning means that all it read was valid; ``TicketUnknown`` or
        ``TicketExpired`` mean that it must forget it."""
        self._require(ticket_id, TicketState.FETCHING, now_s)
        return self._end(ticket_id, TicketState.DONE)

    def abandon(self, ticket_id: bytes) -> T | None:
        """The reader of a claimed ticket is gone. None when the ticket had ended already."""
        live = self._live.get(ticket_id)
        if live is None or live.state is not TicketState.FETCHING:
            return None
        return self._end(ticket_id, TicketState.ABANDONED)

    def revoke(self, request_id: str) -> T | None:
        """The request is cancelled. None when it has no live ticket."""
        ticket_id = self._ticket_of.get(request_id)
        return None if ticket_id is None else self._end(ticket_id, TicketState.REVOKED)

    def revoke_all(self) -> list[T]:
        return [self._end(ticket_id, TicketState.REVOKED) for ticket_id in list(self._live)]

    def expire(self, now_s: float) -> list[T]:
        """End every ticket whose deadline or lease is reached."""
        ended = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            _, ticket_id = heapq.heappop(self._deadlines)
            ended.append(self._end(ticket_id, TicketState.EXPIRED))
        return ended

    def next_deadline_s(self) -> float | None:
        """When ``expire`` has something to do next; None while no ticket is live."""
        while self._deadlines and not self._is_current(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests."""
        assert self._ticket_of == {live.request_id: ticket for ticket, live in self._live.items()}
        assert {ticket for _, ticket in filter(self._is_current, self._deadlines)} == set(self._live)
        assert not self._live.keys() & self._ended.keys()
        assert len(self._ended) <= self._max_remembered
        assert len(self._deadlines) <= 3 * len(self._live) + 64

    def _require(self, ticket_id: bytes, state: TicketState, now_s: float) -> _Live[T]:
        live = self._live.get(ticket_id)
        actual = live.state if live is not None else self._ended.get(ticket_id)
        if actual is TicketState.EXPIRED or (live is not None and live.deadline_s <= now_s):
            raise TicketExpired("the ticket is past its deadline, its blocks are given back; prefill again")
        if live is None or actual is not state:
            why = "was never issued here, or long ago" if actual is None else f"is {actual}"
            raise TicketUnknown(f"the ticket {why}; prefill again")
        return live

    def _end(self, ticket_id: bytes, state: TicketState) -> T:
        live = self._live.pop(ticket_id)
        del self._ticket_of[live.request_id]
        if len(self._ended) >= self._max_remembered:
            del self._ended[next(iter(self._ended))]
        self._ended[ticket_id] = state
        # Stale entries go when they come to the top; long deadlines of short-lived tickets would pile up.
        if len(self._deadlines) > 2 * len(self._live) + 64:
            self._deadlines = [entry for entry in self._deadlines if self._is_current(entry)]
            heapq.heapify(self._deadlines)
        return live.holding

    def _is_current(self, entry: tuple[float, bytes]) -> bool:
        live = self._live.get(entry[1])
        return live is not None and live.deadline_s == entry[0]

    def _push(self, deadline_s: float, ticket_id: bytes) -> None:
        heapq.heappush(self._deadlines, (deadline_s, ticket_id))
