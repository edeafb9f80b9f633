"""``DirectConnector``: prefill first, then decode fetches the blocks from the prefill worker itself."""

from __future__ import annotations

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import Handover, KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerRecord

from .ticket import DIRECT


class DirectConnector(KVConnector):
    """For engines that expose their block memory. The prefill worker's ``BlockServer`` issues the
    ticket; this side only carries it over to the decode leg."""

    handover = Handover.SEQUENTIAL
    first_token = Role.PREFILL

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        if answer is None:
            raise TransferError(
                f"prefill worker {prefill.worker_id} handed {request.request_id} over without a ticket; "
                f"is its service started with connector {DIRECT!r}?"
            )
        if answer.connector != DIRECT:
            raise TransferError(
                f"prefill worker {prefill.worker_id} answered with a ticket of connector "
                f"{answer.connector!r}, the graph uses {DIRECT!r}"
            )
        return answer
