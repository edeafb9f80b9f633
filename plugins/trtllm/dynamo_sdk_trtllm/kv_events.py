"""``RankEvents``: one rank's KV events as TensorRT-LLM tells them, made whole, and what they have built.

TensorRT-LLM numbers the events of each attention data-parallel rank. When its buffer was full it forgets
the oldest, and the next number jumps: what is held is unknown then, so ``BlocksCleared`` is said, and blocks
whose parent was told of before are left out. Our own batches are numbered without a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dynamo_sdk.kv.engine_events import TensorRTEventDecoder
from dynamo_sdk.types import (
    BlocksCleared,
    BlocksMoved,
    BlocksRemoved,
    BlocksStored,
    KVEvent,
    KVEventBatch,
    KVTier,
)
from dynamo_sdk.types.kv_events import EngineBlockHash
from dynamo_sdk.types.tokens import PackedTokens, pack_tokens, unpack_tokens


@dataclass(frozen=True, slots=True)
class _Block:
    parent: EngineBlockHash | None
    tokens: PackedTokens
    tier: KVTier
    lora: str | None
    cache_salt: str | None

    def told_as(self, name: EngineBlockHash) -> BlocksStored:
        token_ids = tuple(unpack_tokens(self.tokens))
        return BlocksStored(
            block_hashes=(name,),
            parent_hash=self.parent,
            token_ids=token_ids,
            block_size=len(token_ids),
            tier=self.tier,
            lora=self.lora,
            cache_salt=self.cache_salt,
        )


class RankEvents:
    """``block_size``: the engine's ``tokens_per_block``. ``num_lost``: events that could not be had."""

    def __init__(self, block_size: int, *, dp_rank: int = 0) -> None:
        self.num_lost = 0
        self._dp_rank = dp_rank
        self._decoder = TensorRTEventDecoder(block_size, dp_rank=dp_rank)
        self._next = 0
        self._num_batches = 0
        self._held: dict[EngineBlockHash, _Block] = {}

    def receive(self, event: Mapping[str, object]) -> tuple[KVEventBatch, ...]:
        """One event, as TensorRT-LLM gave it. What cannot be read raises ``ValueError``."""
        decoded = self._decoder.decode(event)
        batches: tuple[KVEventBatch, ...] = ()
        if decoded.sequence != self._next:
            self.num_lost += max(0, decoded.sequence - self._next)
            batches += self._forget()
        self._next = decoded.sequence + 1
        changes = [change for each in decoded.events for change in self._changes(each)]
        return batches + self._publish(changes)

    def snapshot(self) -> KVEventBatch:
        """All that is held, parents first; it carries the number of the last batch."""
        children: dict[EngineBlockHash | None, list[EngineBlockHash]] = {}
        for name, block in self._held.items():
            children.setdefault(block.parent, []).append(name)
        events: list[KVEvent] = []
        pending = children.pop(None, [])
        while pending:
            name = pending.pop()
            events.append(self._held[name].told_as(name))
            pending += children.pop(name, ())
        return KVEventBatch(sequence=self._num_batches - 1, dp_rank=self._dp_rank, events=tuple(events))

    def _forget(self) -> tuple[KVEventBatch, ...]:
        if not self._held:
            return ()
        self._held.clear()
        return self._publish([BlocksCleared()])

    def _publish(self, events: list[KVEvent]) -> tuple[KVEventBatch, ...]:
        if not events:
            return ()
        batch = KVEventBatch(sequence=self._num_batches, dp_rank=self._dp_rank, events=tuple(events))
        self._num_batches += 1
        return (batch,)

    def _changes(self, event: KVEvent) -> Iterable[KVEvent]:
        """What an event changes; a block's tier is what we know, not what the event assumes."""
        match event:
            case BlocksStored():
                return self._stored(event)
            case BlocksRemoved():
                return self._removed(event.block_hashes)
            case BlocksMoved():
                return self._moved(event)
            case BlocksCleared():
                raise AssertionError("TensorRT-LLM never says that all is gone")

    def _stored(self, event: BlocksStored) -> list[KVEvent]:
        size, parent = event.block_size, event.parent_hash
        told: list[KVEvent] = []
        for place, name in enumerate(event.block_hashes):
            if parent is not None and parent not in self._held:
                break  # nobody can say to which prompt it belongs
            if name not in self._held:
                tokens = pack_tokens(event.token_ids[place * size : (place + 1) * size])
                block = _Block(parent, tokens, event.tier, event.lora, event.cache_salt)
                self._held[name] = block
                told.append(block.told_as(name))
            parent = name
        return told

    def _removed(self, names: Iterable[EngineBlockHash]) -> list[KVEvent]:
        by_tier: dict[KVTier, list[EngineBlockHash]] = {}
        for name in names:
            block = self._held.pop(name, None)
            if block is not None:
                by_tier.setdefault(block.tier, []).append(name)
        return [BlocksRemoved(block_hashes=tuple(gone), tier=tier) for tier, gone in by_tier.items()]

    def _moved(self, event: BlocksMoved) -> list[KVEvent]:
        moved: list[KVEvent] = []
        for name in event.block_hashes:
            block = self._held.get(name)
            if block is not None and block.tier is not event.to_tier:
                self._held[name] = replace(block, tier=event.to_tier)
                moved.append(BlocksMoved(block_hashes=(name,), tier=block.tier, to_tier=event.to_tier))
        return moved
