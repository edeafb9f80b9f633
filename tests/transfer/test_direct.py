from __future__ import annotations

import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import Handover
from dynamo_sdk.transfer import DIRECT, DirectConnector
from dynamo_sdk.transfer.ticket import decode_ticket
from dynamo_sdk.types import (
    GenerateRequest,
    KVTransferParams,
    Role,
    SamplingParams,
    WorkerId,
    WorkerRecord,
    pack_tokens,
)

REQUEST = GenerateRequest(
    request_id="r", model="m", prompt=pack_tokens([1, 2]), sampling=SamplingParams(max_tokens=1)
)
PREFILL = WorkerRecord(worker_id=WorkerId("w1"), service="Prefill", replica=0, address="unix:/w1")


def test_the_prefill_legs_ticket_is_carried_over() -> None:
    connector = DirectConnector()
    assert (connector.handover, connector.first_token) == (Handover.SEQUENTIAL, Role.PREFILL)
    assert connector.prefill_ticket(REQUEST, PREFILL, None) is None
    answer = KVTransferParams(connector=DIRECT, payload=b"ticket", ttl_s=3)
    assert connector.decode_ticket(REQUEST, PREFILL, answer) == answer


@pytest.mark.parametrize("answer", [None, KVTransferParams(connector="nixl", payload=b"")])
def test_no_ticket_or_a_foreign_one_names_the_worker(answer: KVTransferParams | None) -> None:
    with pytest.raises(TransferError, match="w1"):
        DirectConnector().decode_ticket(REQUEST, PREFILL, answer)


@pytest.mark.parametrize(
    "params", [("nixl", b""), (DIRECT, b""), (DIRECT, b"\xff\x00garbage"), (DIRECT, b"\x81\xa1\xff\x00")]
)
def test_damaged_and_foreign_payloads(params: tuple[str, bytes]) -> None:
    with pytest.raises(TransferError):
        decode_ticket(KVTransferParams(connector=params[0], payload=params[1]))
