"""What an engine said about its KV blocks, written down and played back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dynamo_sdk.interfaces import EngineFacts
from dynamo_sdk.types import BlocksRemoved, BlocksStored, KVEvent, KVEventBatch, KVTier

HeldBlocks = set[tuple[KVTier, int | bytes]]


@dataclass(frozen=True, slots=True)
class KVRecording:
    """All batches of a new engine, and its snapshot after the last of them."""

    facts: EngineFacts
    batches: tuple[KVEventBatch, ...]
    snapshot: tuple[KVEventBatch, ...]

    def told(self) -> Iterator[tuple[KVEventBatch, KVEvent, HeldBlocks]]:
        """Each event, with its batch and what its rank holds just before it."""
        held_by: dict[int, HeldBlocks] = {}
        for batch in self.batches:
            held = held_by.setdefault(batch.dp_rank, set())
            for event in batch.events:
                yield batch, event, held
                _apply(event, held)


def held_at_the_end(batches: Iterable[KVEventBatch]) -> dict[int, HeldBlocks]:
    """What each rank holds after these batches; ranks that hold nothing are left out."""
    held_by: dict[int, HeldBlocks] = {}
    for batch in batches:
        for event in batch.events:
            _apply(event, held_by.setdefault(batch.dp_rank, set()))
    return {rank: held for rank, held in held_by.items() if held}


def _apply(event: KVEvent, held: HeldBlocks) -> None:
    if isinstance(event, BlocksStored):
        held.update((event.tier, block_hash) for block_hash in event.block_hashes)
    elif isinstance(event, BlocksRemoved):
        held.difference_update((event.tier, block_hash) for block_hash in event.block_hashes)
    else:
        held.clear()
