"""``Discovery``: who is there. Read this file to write one (embedded, etcd, ...)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from dynamo_sdk.types.workers import WorkerId, WorkerRecord

Fleet = dict[WorkerId, WorkerRecord]


class Lease(ABC):
    """A record's right to be seen; ends at the latest ``ttl_s`` after its owner died."""

    @abstractmethod
    async def update(self, record: WorkerRecord) -> None:
        """Replace the record under the same lease. Raises ``WireError`` when the registry is gone."""

    @abstractmethod
    async def revoke(self) -> None:
        """Withdraw the record now. Idempotent; a registry that is gone is not an error."""


class Discovery(ABC):
    """Announces records and watches those of others."""

    @abstractmethod
    async def register(self, record: WorkerRecord, *, ttl_s: float = 10.0) -> Lease:
        """Announce ``record`` and keep it alive until the lease is revoked or this process ends."""

    @abstractmethod
    def watch(self) -> AsyncGenerator[Fleet, None]:
        """Yield the whole fleet at once and after each change. A slow reader skips states, never the
        last one. The yielded dict is the reader's own."""

    @abstractmethod
    async def close(self) -> None:
        """Revoke all leases of this object and stop watching. Idempotent."""
