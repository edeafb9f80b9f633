"""Workers of one model must agree on what they serve, or clients get answers of another model by chance.

The plan guarantees it for the workers that it starts; a worker that joins a running graph brings a plan
of its own.
"""

from __future__ import annotations

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import Fleet
from dynamo_sdk.transfer import DIRECT
from dynamo_sdk.types import ModelRecord, WorkerRecord


def check_agreement(record: WorkerRecord, fleet: Fleet) -> None:
    """Compare a new worker with those that are there. Raises ``ConfigError`` naming what differs."""
    for other in fleet.values():
        if other.worker_id == record.worker_id or other.role is None:
            continue
        if other.service == record.service:
            _compare(record, other, "engine", record.engine, other.engine)
            _compare(record, other, "role", record.role, other.role)
        for ours in record.models:
            for theirs in other.models:
                if ours.name == theirs.name:
                    _compare_models(record, other, ours, theirs)


def _compare_models(
    record: WorkerRecord, other: WorkerRecord, ours: ModelRecord, theirs: ModelRecord
) -> None:
    _compare(record, other, f"base model of {ours.name!r}", ours.parent, theirs.parent)
    _compare(record, other, "connector", record.connector, other.connector)
    if not _can_recut(record, other, ours.block_size, theirs.block_size):
        _compare(record, other, "block size", ours.block_size, theirs.block_size)
    if ours.digest is not None and theirs.digest is not None:
        _compare(record, other, f"weights of model {ours.name!r}", ours.digest, theirs.digest)


def _can_recut(record: WorkerRecord, other: WorkerRecord, ours: int | None, theirs: int | None) -> bool:
    """Between prefill and decode, ``direct`` makes do with multiples."""
    if record.connector != DIRECT or record.role == other.role or not ours or not theirs:
        return False
    return max(ours, theirs) % min(ours, theirs) == 0


def _compare(record: WorkerRecord, other: WorkerRecord, what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise ConfigError(
            f"{record.service} does not fit the running graph: its {what} is {ours or 'none'}, that of "
            f"{other.worker_id} is {theirs or 'none'}; start it with the same deploy file and --set"
        )
