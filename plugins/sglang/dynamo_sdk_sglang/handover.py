"""Where a prefill and a decode worker that run SGLang meet.

SGLang's legs start at once. Prefill keeps a register at an address; decode asks there for whoever is in the
room of the request, and says where it wants the KV. So a ticket is made before either leg runs, is the same
for both, and holds the address, the room, and prefill's data-parallel rank, which decode must know.

A room is the request's and the attempt's: two requests that met in one room would get each other's KV.
"""

from __future__ import annotations

import msgspec
import xxhash

from dynamo_sdk.errors import TicketUnknown, TransferError
from dynamo_sdk.interfaces import Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerRecord

from .plugin import CONNECTOR

DISAGGREGATION_MODE = "disaggregation_mode"
TRANSFER_BACKEND = "disaggregation_transfer_backend"
DEFAULT_BACKEND = "nixl"

ROOM_MASK = (1 << 63) - 1  # rooms are signed
NOBODY = "2.2.2.2"
"""The host at which SGLang meets nobody and moves nothing, for trying a leg out."""


class Meeting(msgspec.Struct, frozen=True, array_like=True):
    """What is in a ticket. ``dp_rank`` None: SGLang chooses it by the room."""

    host: str
    port: int
    room: int
    dp_rank: int | None = None


class SglangConnector(KVConnector):
    """Decode says the first token, which it gets with the KV. It cannot compute a prompt by itself."""

    handover = Handover.RENDEZVOUS
    first_token = Role.DECODE
    decodes_alone = False

    def engine_args(self, role: Role) -> dict[str, str]:
        if role is Role.AGGREGATED:
            return {}
        return {DISAGGREGATION_MODE: str(role), TRANSFER_BACKEND: DEFAULT_BACKEND}

    def prefill_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, decode: WorkerRecord | None
    ) -> KVTransferParams:
        host, _, port = (prefill.handover_address or "").rpartition(":")
        if not host:
            raise TransferError(f"worker {prefill.worker_id} does not say where legs meet")
        meeting = Meeting(host, int(port), _room(request), request.dp_rank)
        return KVTransferParams(connector=CONNECTOR, payload=msgspec.msgpack.encode(meeting))

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        if answer is None:
            raise TransferError(f"a leg without the ticket that worker {prefill.worker_id} has")
        return answer


def read_meeting(ticket: KVTransferParams) -> Meeting:
    """Raises ``TicketUnknown``."""
    if ticket.connector != CONNECTOR:
        raise TicketUnknown(f"SGLang reads no tickets of {ticket.connector!r}")
    try:
        return msgspec.msgpack.decode(ticket.payload, type=Meeting)
    except msgspec.MsgspecError as error:
        raise TicketUnknown(f"the ticket cannot be read: {error}") from error


def meet_nobody(request: GenerateRequest) -> Meeting:
    """For one leg alone: prefill then gives its token, decode gives one that means nothing."""
    return Meeting(NOBODY, 0, _room(request))


def _room(request: GenerateRequest) -> int:
    return xxhash.xxh3_64_intdigest(request.request_id.encode()) & ROOM_MASK
