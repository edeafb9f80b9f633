"""``ZmqEventFeed``: a publisher's numbered messages, made whole, and what they have built.

Publishers drop messages for slow readers and forget old ones; nobody tells the reader. So::

    a message that      does
    is the next one     is decoded and applied
    comes too early     is kept; what is missing is asked for
    is old              nothing; but a publisher that counts backwards has started anew, and so does
                        the feed

What cannot be had again leaves the state unknown: the feed then says ``BlocksCleared`` and goes on from
there. Its own batches are numbered without a gap, whatever happens before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynamo_sdk.types.kv_events import (
    BlocksCleared,
    BlocksMoved,
    BlocksRemoved,
    BlocksStored,
    EngineBlockHash,
    KVEvent,
    KVEventBatch,
    KVTier,
)
from dynamo_sdk.types.tokens import PackedTokens, pack_tokens, unpack_tokens

from .zmq_frames import ZmqEventDecoder

_Name = tuple[KVTier, EngineBlockHash]


@dataclass(frozen=True, slots=True)
class FeedStep:
    """``batches`` for the listeners. ``ask_from``: ask the publisher for all messages from this number on."""

    batches: tuple[KVEventBatch, ...] = ()
    ask_from: int | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    parent: EngineBlockHash | None
    tokens: PackedTokens
    lora: str | None
    cache_salt: str | None


class ZmqEventFeed:
    """One data-parallel rank of one engine. Blocks of another size than ``block_size`` are ignored; None =
    the first one decides. ``num_lost``: messages that could not be had."""

    def __init__(self, *, dp_rank: int = 0, block_size: int | None = None) -> None:
        self.num_lost = 0
        self._dp_rank = dp_rank
        self._block_size = block_size
        self._decoder = ZmqEventDecoder(dp_rank=dp_rank)
        self._next = 0
        self._last_live = -1
        self._early: dict[int, Sequence[bytes]] = {}
        self._num_batches = 0
        self._held: dict[_Name, _Block] = {}

    def receive(self, frames: Sequence[bytes], *, is_replay: bool = False) -> FeedStep:
        """A message that was published, or replayed. What cannot be read raises ``ValueError``; it is
        skipped, and what it said is lost."""
        if len(frames) != 3:
            raise ValueError(f"a message of {len(frames)} frames instead of topic, number and events")
        sequence = int.from_bytes(frames[1], "big", signed=True)
        if not is_replay:
            has_restarted, self._last_live = sequence <= self._last_live, sequence
            if has_restarted:
                return self._start_anew(sequence, frames)
        if sequence < self._next:
            return FeedStep()
        is_asked_for = bool(self._early)
        self._early[sequence] = frames
        if sequence > self._next:
            return FeedStep(ask_from=None if is_asked_for else self._next)
        return FeedStep(self._take_early())

    def replayed(self) -> tuple[KVEventBatch, ...]:
        """Nothing more comes of what was asked for: what is still missing is lost."""
        if not self._early:
            return ()
        self.num_lost += min(self._early) - self._next
        self._next = min(self._early)
        return self._forget() + self._take_early()

    def snapshot(self) -> KVEventBatch:
        """All that is held, parents first; it carries the number of the last batch."""
        children: dict[_Name, list[_Name]] = {}
        pending: list[_Name] = []
        for name, block in self._held.items():
            if block.parent is None:
                pending.append(name)
            else:
                children.setdefault((name[0], block.parent), []).append(name)
        events: list[KVEvent] = []
        while pending:
            name = pending.pop()
            events.append(self._stored_again(name))
            pending += children.pop(name, ())
        return KVEventBatch(sequence=self._num_batches - 1, dp_rank=self._dp_rank, events=tuple(events))

    # -- inside: messages

    def _start_anew(self, sequence: int, frames: Sequence[bytes]) -> FeedStep:
        """The publisher is another one."""
        self._next, self._early = 0, {sequence: frames}
        forgotten = self._forget()
        if sequence:
            return FeedStep(forgotten, ask_from=0)
        return FeedStep(forgotten + self._take_early())

    def _forget(self) -> tuple[KVEventBatch, ...]:
        self._decoder = ZmqEventDecoder(dp_rank=self._dp_rank)
        return self._publish([BlocksCleared()]) if self._held else ()

    def _take_early(self) -> tuple[KVEventBatch, ...]:
        """Apply what was kept, as far as it follows without a gap."""
        batches: tuple[KVEventBatch, ...] = ()
        while (frames := self._early.pop(self._next, None)) is not None:
            self._next += 1
            batch = self._decoder.decode(frames)
            if batch is not None:
                batches += self._publish(change for event in batch.events for change in self._changes(event))
        return batches

    def _publish(self, events: Iterable[KVEvent]) -> tuple[KVEventBatch, ...]:
        made: list[KVEvent] = []
        for event in events:
            if isinstance(event, BlocksCleared):
                self._held.clear()
            made.append(event)
        if not made:
            return ()
        batch = KVEventBatch(sequence=self._num_batches, dp_rank=self._dp_rank, events=tuple(made))
        self._num_batches += 1
        return (batch,)

    # -- inside: blocks

    def _changes(self, event: KVEvent) -> Iterable[KVEvent]:
        """What is new in an event: engines say again what they hold twice."""
        match event:
            case BlocksStored():
                stored = self._store(event)
                return () if stored is None else (stored,)
            case BlocksRemoved():
                held = [name for name in event.block_hashes if self._held.pop((event.tier, name), None)]
                return (BlocksRemoved(block_hashes=tuple(held), tier=event.tier),) if held else ()
            case BlocksMoved():
                raise AssertionError("no ZMQ publisher moves blocks")
            case BlocksCleared():
                return (event,)

    def _store(self, event: BlocksStored) -> BlocksStored | None:
        size, names, tier = event.block_size, event.block_hashes, event.tier
        self._block_size = self._block_size or size
        if size != self._block_size or len(event.token_ids) != size * len(names):
            return None
        if event.parent_hash is not None and (tier, event.parent_hash) not in self._held:
            return None  # nobody can say to which prompt it belongs
        first_new = next((place for place, name in enumerate(names) if (tier, name) not in self._held), None)
        if first_new is None:
            return None
        parents = (event.parent_hash, *names)
        for place in range(first_new, len(names)):
            tokens = pack_tokens(event.token_ids[place * size : (place + 1) * size])
            self._held[tier, names[place]] = _Block(parents[place], tokens, event.lora, event.cache_salt)
        return BlocksStored(
            block_hashes=names[first_new:],
            parent_hash=parents[first_new],
            token_ids=event.token_ids[first_new * size :],
            block_size=size,
            tier=tier,
            lora=event.lora,
            cache_salt=event.cache_salt,
        )

    def _stored_again(self, name: _Name) -> BlocksStored:
        block = self._held[name]
        tokens = tuple(unpack_tokens(block.tokens))
        return BlocksStored(
            block_hashes=(name[1],),
            parent_hash=block.parent,
            token_ids=tokens,
            block_size=len(tokens),
            tier=name[0],
            lora=block.lora,
            cache_salt=block.cache_salt,
        )
