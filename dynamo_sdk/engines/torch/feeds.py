"""What the engine tells whoever listens: KV events, numbered, and a record of each step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from dynamo_sdk.types import KVEvent, KVEventBatch

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Feed(Generic[T]):
    """Calls its listeners at once, in the order in which they came. One that raises harms nobody else."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[T], None]] = []

    @property
    def has_listeners(self) -> bool:
        return bool(self._listeners)

    def subscribe(self, listener: Callable[[T], None]) -> None:
        self._listeners.append(listener)

    def publish(self, item: T) -> None:
        for listener in self._listeners:
            try:
                listener(item)
            except Exception:
                _log.exception("a listener of the engine failed")


class KVEventFeed(Feed[KVEventBatch]):
    """Numbers the batches, also while nobody listens, so that a late listener sees where it came in."""

    def __init__(self) -> None:
        super().__init__()
        self._num_batches = 0

    def publish_events(self, events: tuple[KVEvent, ...]) -> None:
        if events:
            batch = KVEventBatch(sequence=self._num_batches, dp_rank=0, events=events)
            self._num_batches += 1
            self.publish(batch)

    def snapshot(self, events: tuple[KVEvent, ...]) -> KVEventBatch:
        """``events`` rebuild the state after all batches so far; the number is -1 when there was none."""
        return KVEventBatch(sequence=self._num_batches - 1, dp_rank=0, events=events)
