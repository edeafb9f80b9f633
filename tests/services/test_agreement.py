from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.services.agreement import check_agreement
from dynamo_sdk.types import ModelRecord, Role, WorkerId, WorkerRecord

MODEL = ModelRecord(name="m", path="/a", context_length=100, block_size=16, digest="d1")
DECODE = WorkerRecord(
    worker_id=WorkerId("Decode.0"),
    service="Decode",
    replica=0,
    address="unix:/x",
    role=Role.DECODE,
    engine="torch",
    connector="direct",
    models=(MODEL,),
)
PREFILL = msgspec.structs.replace(
    DECODE, worker_id=WorkerId("Prefill.0"), service="Prefill", role=Role.PREFILL
)
FRONTEND = WorkerRecord(worker_id=WorkerId("Api.0"), service="Api", replica=0, address="unix:/y")
FLEET = {record.worker_id: record for record in (DECODE, PREFILL, FRONTEND)}


def newcomer(**changes: object) -> WorkerRecord:
    return msgspec.structs.replace(DECODE, worker_id=WorkerId("Decode.0-b"), **changes)


def model(**changes: object) -> tuple[ModelRecord, ...]:
    return (msgspec.structs.replace(MODEL, **changes),)


@pytest.mark.parametrize(
    "fitting",
    [
        newcomer(),
        newcomer(models=model(path="/elsewhere", context_length=50)),
        newcomer(models=model(digest=None)),
        newcomer(service="Other", engine="echo", models=model(name="another", block_size=64)),
        FRONTEND,
    ],
)
def test_what_fits_may_join(fitting: WorkerRecord) -> None:
    check_agreement(fitting, FLEET)


def test_between_the_roles_multiples_of_a_block_size_fit() -> None:
    prefill = {PREFILL.worker_id: PREFILL}
    for block_size in (8, 32, 48):
        check_agreement(newcomer(models=model(block_size=block_size)), prefill)
    stranger = newcomer(connector="x", models=model(block_size=32))
    for other in (newcomer(models=model(block_size=24)), stranger):
        with pytest.raises(ConfigError):
            check_agreement(other, prefill)


@pytest.mark.parametrize(
    ("stranger", "message"),
    [
        (newcomer(engine="echo"), "its engine is echo, that of Decode.0 is torch"),
        (newcomer(role=Role.AGGREGATED), "its role is aggregated, that of Decode.0 is decode"),
        (newcomer(connector=None), "its connector is none, that of Decode.0 is direct"),
        (newcomer(models=model(block_size=32)), "its block size is 32, that of Decode.0 is 16"),
        (newcomer(models=model(digest="d2")), "its weights of model 'm' is d2"),
        (newcomer(service="Second", models=model(block_size=32)), "its block size is 32"),
        (newcomer(models=model(parent="base")), "its base model of 'm' is base, that of Decode.0 is none"),
    ],
)
def test_what_would_answer_differently_is_refused(stranger: WorkerRecord, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_agreement(stranger, FLEET)
