"""``TensorRTEventDecoder``: what TensorRT-LLM's ``get_kv_cache_events`` returns, one dictionary per event.

What is special: blocks that are not full are stored, too; a block that is offloaded or brought back is
``updated``, without its tokens; a model with several attention windows tells of all of them, of which the
largest counts; names are numbers, or hexadecimal text in newer versions.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dynamo_sdk.types.kv_events import (
    BlocksMoved,
    BlocksRemoved,
    BlocksStored,
    EngineBlockHash,
    KVEvent,
    KVEventBatch,
    KVTier,
)

_TIER_OF_LEVEL = (KVTier.DEVICE, KVTier.HOST, KVTier.DISK)

_Name = int | str


class _Token(msgspec.Struct):
    token_id: int
    token_extra_id: int = 0


class _Block(msgspec.Struct):
    block_hash: _Name
    tokens: list[_Token]
    cache_level: int = 0
    lora_name: str | None = None
    cache_salt: str | None = None
    mm_keys: list[object] | None = None


class _Created(msgspec.Struct, tag="created"):
    pass


class _Stored(msgspec.Struct, tag="stored"):
    blocks: list[_Block]
    parent_hash: _Name | None = None


class _Removed(msgspec.Struct, tag="removed"):
    block_hashes: list[_Name]


class _Change(msgspec.Struct):
    old_value: int
    new_value: int


class _Updated(msgspec.Struct, tag="updated"):
    block_hash: _Name
    cache_level: _Change | None = None


class _Event(msgspec.Struct):
    event_id: int
    data: _Created | _Stored | _Removed | _Updated
    window_size: int | None = None
    attention_dp_rank: int | None = None


class TensorRTEventDecoder:
    """For one rank. ``block_size`` is the engine's ``tokens_per_block``."""

    def __init__(self, block_size: int, *, dp_rank: int = 0) -> None:
        self._block_size = block_size
        self._dp_rank = dp_rank
        self._largest_window = 0
        self._left_out: set[EngineBlockHash] = set()  # blocks that we did not tell of
        self._levels: dict[EngineBlockHash, KVTier] = {}  # of those that are not on the device

    def decode(self, event: Mapping[str, object]) -> KVEventBatch:
        """One event as a batch of its own, perhaps empty. Raises ``ValueError`` for any other dictionary."""
        try:
            decoded = msgspec.convert(event, _Event)
        except msgspec.ValidationError as error:
            raise ValueError(f"an event that cannot be read: {error}") from error
        rank = decoded.attention_dp_rank
        return KVEventBatch(
            sequence=decoded.event_id,
            dp_rank=self._dp_rank if rank is None else rank,
            events=self._events(decoded.data, decoded.window_size or 0),
        )

    def _events(self, data: _Created | _Stored | _Removed | _Updated, window: int) -> tuple[KVEvent, ...]:
        if isinstance(data, _Created):
            self._largest_window = max(self._largest_window, window)
            return ()
        if window < self._largest_window:
            return ()
        match data:
            case _Stored():
                return self._stored(data)
            case _Removed():
                return self._removed(data)
            case _Updated():
                return self._updated(data)

    def _stored(self, data: _Stored) -> tuple[KVEvent, ...]:
        """One event per row of blocks that have adapter, salt and tier in common."""
        events: list[KVEvent] = []
        parent = None if data.parent_hash is None else _name(data.parent_hash)
        row: list[_Block] = []
        for place, block in enumerate(data.blocks):
            if not self._is_told(block):
                self._left_out.update(_name(left.block_hash) for left in data.blocks[place:])
                break
            if row and _kind(row[0]) != _kind(block):
                events.append(self._row(row, parent))
                parent, row = _name(row[-1].block_hash), []
            row.append(block)
        if row:
            events.append(self._row(row, parent))
        return tuple(events)

    def _is_told(self, block: _Block) -> bool:
        has_only_tokens = not block.mm_keys and not any(token.token_extra_id for token in block.tokens)
        return len(block.tokens) == self._block_size and has_only_tokens

    def _row(self, blocks: list[_Block], parent: EngineBlockHash | None) -> BlocksStored:
        names = tuple([_name(block.block_hash) for block in blocks])
        tier = _tier(blocks[0].cache_level)
        self._left_out.difference_update(names)
        for name in names:
            self._note_tier(name, tier)
        return BlocksStored(
            block_hashes=names,
            parent_hash=parent,
            token_ids=tuple([token.token_id for block in blocks for token in block.tokens]),
            block_size=self._block_size,
            tier=tier,
            lora=blocks[0].lora_name,
            cache_salt=blocks[0].cache_salt,
        )

    def _removed(self, data: _Removed) -> tuple[KVEvent, ...]:
        by_tier: dict[KVTier, list[EngineBlockHash]] = {}
        for raw_name in data.block_hashes:
            name = _name(raw_name)
            if name in self._left_out:
                self._left_out.discard(name)
            else:
                by_tier.setdefault(self._levels.pop(name, KVTier.DEVICE), []).append(name)
        return tuple([BlocksRemoved(block_hashes=tuple(names), tier=tier) for tier, names in by_tier.items()])

    def _updated(self, data: _Updated) -> tuple[KVEvent, ...]:
        name = _name(data.block_hash)
        if data.cache_level is None or name in self._left_out:
            return ()
        target = _tier(data.cache_level.new_value)
        self._note_tier(name, target)
        return (BlocksMoved(block_hashes=(name,), tier=_tier(data.cache_level.old_value), to_tier=target),)

    def _note_tier(self, name: EngineBlockHash, tier: KVTier) -> None:
        if tier is KVTier.DEVICE:
            self._levels.pop(name, None)
        else:
            self._levels[name] = tier


def _name(name: _Name) -> EngineBlockHash:
    return bytes.fromhex(name) if isinstance(name, str) else name


def _kind(block: _Block) -> tuple[str | None, str | None, int]:
    return block.lora_name, block.cache_salt, block.cache_level


def _tier(level: int) -> KVTier:
    return _TIER_OF_LEVEL[min(max(level, 0), len(_TIER_OF_LEVEL) - 1)]
