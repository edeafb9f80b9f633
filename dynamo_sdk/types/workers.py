"""Workers and other replicas, as discovery knows them."""

from __future__ import annotations

from typing import NewType

import msgspec

from .models import ModelRecord
from .requests import Role

WorkerId = NewType("WorkerId", str)
"""Opaque, unique for ever: a restarted worker is another worker."""


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One running replica. Services without an engine leave everything from ``role`` on empty.

    ``address``: where its request plane listens, ``unix:/path`` or ``tcp:host:port``.
    ``url``: its HTTP address, if it serves one. ``is_ready``: every edge it depends on has answered.
    ``kv_address``: where its tiers can be read by others, if it reads those of others as well.
    ``handover_address``: where its engine meets the other leg of a hand-over, as its KV connector reads it.
    """

    worker_id: WorkerId
    service: str
    replica: int
    address: str
    is_ready: bool = False
    url: str | None = None
    role: Role | None = None
    engine: str | None = None
    connector: str | None = None
    handover_address: str | None = None
    models: tuple[ModelRecord, ...] = ()
    dp_size: int = 1
    num_blocks: int | None = None
    publishes_kv_events: bool = False
    kv_address: str | None = None
    pid: int | None = None
