"""``KVEventFeed``: the engine's KV events, numbered, for whoever listens."""

from __future__ import annotations

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.types import KVEvent, KVEventBatch


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
