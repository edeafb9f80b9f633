"""``Announcement``: what others see of a replica, and how that changes while it runs."""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo_sdk.interfaces import Discovery, Lease
from dynamo_sdk.types import WorkerRecord


class Announcement:
    """One record and, from ``begin`` to ``end``, its lease."""

    def __init__(self) -> None:
        self._record: WorkerRecord | None = None
        self._lease: Lease | None = None

    async def begin(self, record: WorkerRecord, discovery: Discovery) -> None:
        """Raises ``WireError``."""
        self._record = record
        self._lease = await discovery.register(record)

    async def change(self, **fields: Any) -> None:
        """Replace fields of the record; before ``begin`` and after ``end`` there is nothing to change.
        Raises ``WireError`` when the registry is out of reach; the next change brings this one too."""
        if self._record is not None and self._lease is not None:
            self._record = msgspec.structs.replace(self._record, **fields)
            await self._lease.update(self._record)

    async def end(self) -> None:
        """Withdraw the record. Idempotent."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.revoke()
