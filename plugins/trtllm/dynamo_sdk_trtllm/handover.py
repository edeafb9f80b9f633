"""Tickets between a prefill and a decode worker that run TensorRT-LLM.

A prefill leg ends with ``DisaggregatedParams``: the first token, and an opaque state by which decode's cache
transceiver finds the blocks. The ticket carries them as they are. Prefill holds the blocks until they are
fetched, or until its own time-out. So::

    prefill   stamps the ticket with a deadline well before that time-out
    flow      counts down the ticket's own time, and prefills again when it is over
    decode    refuses a ticket past its deadline, for another prompt, or seen before
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from dynamo_sdk.engines.foreign_arguments import accepted
from dynamo_sdk.engines.tickets import SpentTickets, passed_on, read_ticket
from dynamo_sdk.errors import TicketUnknown, TransferError
from dynamo_sdk.interfaces import Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerRecord

from .plugin import CONNECTOR

USABLE_SHARE = 2 / 3
"""The part of prefill's time-out in which a ticket may be used. The rest is for what its holders cannot
see: the way, and clocks of hosts that differ by seconds."""

_CARRIED = (
    "first_gen_tokens",
    "ctx_request_id",
    "opaque_state",
    "draft_tokens",
    "disagg_request_id",
    "ctx_dp_rank",
    "ctx_info_endpoint",
)
"""Fields of ``DisaggregatedParams`` that go over as they are, where the version has them."""


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """``expires_at_s``: by the wall clock of the prefill worker's host. ``num_tokens``: prompt and generated
    ones, without ``first_gen_tokens``. ``logprobs`` per first token: (token, logprob, rank)."""

    expires_at_s: float
    num_tokens: int
    params: dict[str, Any]
    logprobs: list[list[tuple[int, float, int | None]]] | None = None

    @property
    def first_tokens(self) -> list[int]:
        return list(self.params.get("first_gen_tokens") or ())


class TensorRTConnector(KVConnector):
    """Decode goes on behind the first token, which prefill has computed."""

    handover = Handover.SEQUENTIAL
    first_token = Role.PREFILL

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        return passed_on(CONNECTOR, prefill, answer)


def issue_ticket(params: object, *, num_tokens: int, timeout_s: float, now_s: float) -> KVTransferParams:
    """The ticket for the ``DisaggregatedParams`` of a prefill leg that ended at ``now_s`` (wall clock).

    Raises ``TransferError`` where they do not say what decode needs.
    """
    carried = {name: getattr(params, name, None) for name in _CARRIED}
    carried = {name: value for name, value in carried.items() if value is not None}
    if not carried.get("first_gen_tokens"):
        raise TransferError("TensorRT-LLM gave no first token with the prompt's KV")
    ttl_s = timeout_s * USABLE_SHARE
    ticket = Ticket(now_s + ttl_s, num_tokens, carried, _flat(getattr(params, "first_gen_log_probs", None)))
    try:
        payload = msgspec.msgpack.encode(ticket)
    except TypeError as error:
        raise TransferError(f"TensorRT-LLM's hand-over cannot be sent: {error}") from error
    return KVTransferParams(connector=CONNECTOR, payload=payload, ttl_s=ttl_s)


def generation_params(
    ticket: Ticket, params_type: Callable[..., Any], logprob_type: Callable[..., Any]
) -> Any:
    """``DisaggregatedParams`` of a decode leg."""
    fields: dict[str, object] = dict(ticket.params)
    if ticket.logprobs is not None:
        fields["first_gen_log_probs"] = [
            {token: logprob_type(logprob=logprob, rank=rank) for token, logprob, rank in entry}
            for entry in ticket.logprobs
        ]
    return params_type(request_type="generation_only", **accepted(params_type, fields))


class TicketDesk:
    """Where a decode worker checks tickets. It remembers those it has seen until they have run out."""

    def __init__(self) -> None:
        self._spent = SpentTickets[bytes]()

    def redeem(self, ticket: KVTransferParams, tokens: Sequence[int], *, now_s: float) -> Ticket:
        """For a request of these ``tokens``, prompt and generated; ``now_s`` is wall-clock time.

        Raises ``TicketExpired`` and ``TicketUnknown``.
        """
        decoded = read_ticket(ticket, Ticket, connector=CONNECTOR, reader="TensorRT-LLM", now_s=now_s)
        first = decoded.first_tokens
        if len(tokens) != decoded.num_tokens + len(first) or list(tokens[-len(first) :]) != first:
            raise TicketUnknown(
                f"the ticket is for {decoded.num_tokens} tokens and then {first}, the request has others"
            )
        self._spent.spend(ticket.payload, shown="the ticket", expires_at_s=decoded.expires_at_s, now_s=now_s)
        return decoded


def _flat(entries: Sequence[Mapping[int, Any]] | None) -> list[list[tuple[int, float, int | None]]] | None:
    if not entries:
        return None
    return [
        [(token, each.logprob, getattr(each, "rank", None)) for token, each in entry.items()]
        for entry in entries
    ]
