"""The KV connector of engines that keep no KV: the hand-over is sequential, and the ticket is empty."""

from __future__ import annotations

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import KVConnector
from dynamo_sdk.types import GenerateRequest, KVTransferParams, WorkerRecord

NAME = "stateless"
TICKET = KVTransferParams(connector=NAME, payload=b"")


class StatelessConnector(KVConnector):
    """Prompt and generated tokens say all that the decode leg must know."""

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        if answer is not None and answer.connector != NAME:
            raise TransferError(
                f"worker {prefill.worker_id} answered with a ticket of {answer.connector!r}, not {NAME!r}"
            )
        return TICKET
