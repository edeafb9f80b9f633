"""What a tier offers beyond ``KVStore`` when its blocks are other workers'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dynamo_sdk.types.kv_transfer import KVSource

from .kv_store import CacheKey


class ReadsPeers(ABC):
    """A ``KVStore`` that finds what it was told of, and where it was told that it is. It keeps nothing: what
    it finds is offered to the tiers that do."""

    @abstractmethod
    def trust(self, secret: bytes | None) -> None:
        """Other workers know this secret; None: they have none. Called before ``start``."""

    @abstractmethod
    def expect(self, keys: Sequence[CacheKey], source: KVSource) -> None:
        """``source`` is said to hold ``keys``. A plain call; what was said of these keys before is
        forgotten."""
