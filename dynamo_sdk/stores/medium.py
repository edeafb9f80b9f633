"""What lies under a store of equal slots. Blocking calls from threads, at once for different slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from dynamo_sdk.interfaces import BlockOffer, CacheKey, KVStoreFailureKind

MAX_KEY_BYTES = 32


class SlotJob(msgspec.Struct, gc=False, eq=False):
    """One block to move. ``memory`` is ``block_bytes`` long, flat, and writable for a read.

    ``is_done`` is set when the block has moved whole; else ``failure`` may say why not, or the work was
    stopped before its turn.
    """

    slot: int
    key: CacheKey
    memory: memoryview
    offer: BlockOffer | None = None
    is_done: bool = False
    failure: KVStoreFailureKind | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FoundBlock:
    """What a slot was found to hold at start."""

    slot: int
    key: CacheKey
    parent: CacheKey | None
    priority: int
    token_hash: int
    namespace: int


class SlotMedium(ABC):
    """``num_slots`` slots of ``block_bytes``. Errors of the medium are results of jobs, not exceptions."""

    num_slots: int
    inline_bytes: int = 0
    """Batches up to so many bytes are quick enough for the event loop."""

    is_ordered: bool = False
    """Jobs are to come by ascending slot."""

    @abstractmethod
    def open(self) -> list[FoundBlock]:
        """What is there from earlier, least recently written first. Raises ``ConfigError``."""

    @abstractmethod
    def write(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        """Fill the slots; each comes once."""

    @abstractmethod
    def read(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        """Fill the memories; one slot may come more than once."""

    def clear(self, slots: Sequence[int]) -> None:
        """What the slots hold must not be found at the next start."""

    def close(self) -> None:
        """Idempotent; nothing is under way."""
