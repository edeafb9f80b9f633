"""Tickets between a prefill and a decode worker that run vLLM with its ``NixlConnector``.

A ticket carries vLLM's ``kv_transfer_params`` as they are. Prefill holds the blocks for the length of a
lease; decode reads them from its memory. vLLM does not notice when decode reads after the lease: the blocks
may hold another prompt by then, and the answer is wrong without an error. So::

    prefill   stamps the ticket with a deadline well before the end of the lease
    flow      counts down the ticket's own time, and prefills again when it is over
    decode    refuses a ticket past its deadline, for another prompt, or seen before

Once decode's scheduler has the request, vLLM renews the lease by itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo_sdk.engines.tickets import SpentTickets, passed_on, read_ticket
from dynamo_sdk.errors import TicketUnknown
from dynamo_sdk.interfaces import Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerRecord

from .plugin import CONNECTOR

USABLE_SHARE = 2 / 3
"""The part of a lease in which a ticket may be used. The rest is for what a ticket's holders cannot see: the
way to them, the step that decode's scheduler is in, clocks of hosts that differ by seconds."""

ASK_FOR_TICKET = {"do_remote_decode": True}
"""``kv_transfer_params`` of a prefill leg."""

Params = dict[str, Any]
"""vLLM's ``kv_transfer_params``: JSON types whose meaning is vLLM's own."""


class _Ticket(msgspec.Struct, frozen=True, array_like=True):
    """``expires_at_s``: by the wall clock of the prefill worker's host."""

    expires_at_s: float
    params: Params


class VllmNixlConnector(KVConnector):
    """Decode computes the first token again, from the KV that it fetched, and its copy is the one that
    counts: so a seeded request gives the tokens that one worker alone would give."""

    handover = Handover.SEQUENTIAL
    first_token = Role.DECODE

    def engine_args(self, role: Role) -> dict[str, str]:
        kv_role = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}.get(role, "kv_both")
        return {"kv_connector": "NixlConnector", "kv_role": kv_role}

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        return passed_on(CONNECTOR, prefill, answer)


def issue_ticket(params: Params, *, lease_s: float, now_s: float) -> KVTransferParams:
    """The ticket for what a prefill leg left, which ended at ``now_s`` of the wall clock."""
    ttl_s = lease_s * USABLE_SHARE
    payload = msgspec.msgpack.encode(_Ticket(now_s + ttl_s, params))
    return KVTransferParams(connector=CONNECTOR, payload=payload, ttl_s=ttl_s)


class TicketDesk:
    """Where a decode worker checks tickets. It remembers those it has seen until they have run out."""

    def __init__(self) -> None:
        self._spent = SpentTickets[tuple[str, str]]()

    def redeem(self, ticket: KVTransferParams, *, num_tokens: int, now_s: float) -> Params:
        """vLLM's ``kv_transfer_params`` for a prompt of ``num_tokens``; ``now_s`` is wall-clock time.

        Raises ``TicketExpired`` and ``TicketUnknown``.
        """
        decoded = read_ticket(ticket, _Ticket, connector=CONNECTOR, reader="vLLM", now_s=now_s)
        params = decoded.params
        num_remote_tokens = params.get("remote_num_tokens")
        if num_remote_tokens is not None and num_remote_tokens != num_tokens:
            raise TicketUnknown(f"the ticket is for {num_remote_tokens} tokens, the request has {num_tokens}")
        name = str(params.get("remote_engine_id")), str(params.get("remote_request_id"))
        self._spent.spend(
            name, shown=f"the ticket of {name[1]}", expires_at_s=decoded.expires_at_s, now_s=now_s
        )
        return params
