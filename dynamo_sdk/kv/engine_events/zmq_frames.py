"""``ZmqEventDecoder``: the messages of vLLM's and SGLang's event publishers.

A message is three frames: topic, sequence number (eight bytes, big-endian), and as msgpack
``[time, [event], dp_rank]``. Events are maps with a ``type``. Where the two differ: vLLM's names are unsigned
64-bit numbers or bytes, SGLang's signed numbers; vLLM says a cache salt in ``extra_keys``, only for the first
block of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo_sdk.types.kv_events import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    EngineBlockHash,
    KVEvent,
    KVEventBatch,
    KVTier,
)

TIER_OF_MEDIUM = {
    "GPU": KVTier.DEVICE,
    "CPU": KVTier.HOST,
    "CPU_PINNED": KVTier.HOST,
    "DISK": KVTier.DISK,
    "STORAGE": KVTier.DISK,
    "EXTERNAL": KVTier.REMOTE,
}
_FULL_ATTENTION = "full_attention"
_MAX_SALTED_BLOCKS = 1_000_000

_Name = int | bytes


class _Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[_Name]
    token_ids: list[int]
    block_size: int
    parent_block_hash: _Name | None = None
    medium: str | None = None
    lora_name: str | None = None
    lora_id: int | None = None
    cache_salt: str | None = None
    extra_keys: list[list[msgspec.Raw] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[_Name]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Payload(msgspec.Struct, array_like=True):
    at_s: float
    events: list[_Stored | _Removed | _Cleared]
    dp_rank: int | None = None


class ZmqEventDecoder:
    """For one rank; ``dp_rank`` is what its batches are marked with where the engine does not say."""

    def __init__(self, *, dp_rank: int = 0) -> None:
        self._dp_rank = dp_rank
        self._payloads = msgspec.msgpack.Decoder(_Payload)
        self._salt_of: dict[EngineBlockHash, str] = {}  # of salted blocks: their successors do not say it
        self._other_groups: set[int] = set()  # of blocks that a sliding window forgets

    def decode(self, frames: Sequence[bytes]) -> KVEventBatch | None:
        """One message. None = the end of a replay, which is no batch. Raises ``ValueError`` for anything else
        than the frames above; the stream then has a gap."""
        if len(frames) != 3:
            raise ValueError(f"a message of {len(frames)} frames instead of topic, number and events")
        sequence = int.from_bytes(frames[1], "big", signed=True)
        if sequence < 0:
            return None
        try:
            payload = self._payloads.decode(frames[2])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"events that cannot be read: {error}") from error
        events = [self._event(event) for event in payload.events]
        return KVEventBatch(
            sequence=sequence,
            dp_rank=self._dp_rank if payload.dp_rank is None else payload.dp_rank,
            events=tuple([event for event in events if event is not None]),
        )

    def _event(self, event: _Stored | _Removed | _Cleared) -> KVEvent | None:
        match event:
            case _Stored():
                return self._stored(event)
            case _Removed():
                for name in event.block_hashes:
                    self._salt_of.pop(name, None)
                if event.group_idx in self._other_groups:
                    return None
                return BlocksRemoved(block_hashes=tuple(event.block_hashes), tier=_tier(event.medium))
            case _Cleared():
                self._salt_of.clear()
                return BlocksCleared()

    def _stored(self, event: _Stored) -> BlocksStored | None:
        if event.kv_cache_spec_kind not in (None, _FULL_ATTENTION):
            if event.group_idx is not None:
                self._other_groups.add(event.group_idx)
            return None
        parent = event.parent_block_hash
        salt = event.cache_salt or (None if parent is None else self._salt_of.get(parent))
        lora = event.lora_name or (f"lora-{event.lora_id}" if event.lora_id else None)
        num_blocks = len(event.block_hashes)
        for place, raw_keys in enumerate(event.extra_keys or ()):
            keys = [msgspec.msgpack.decode(key) for key in raw_keys or ()]
            keys = [key for key in keys if key != event.lora_name]
            if place == 0 and parent is None and len(keys) == 1 and isinstance(keys[0], str):
                salt = keys.pop()
            if keys:
                num_blocks = place  # depends on something that a router cannot know
                break
        if not num_blocks:
            return None
        names = tuple(event.block_hashes[:num_blocks])
        if salt is not None and len(self._salt_of) < _MAX_SALTED_BLOCKS:
            self._salt_of |= dict.fromkeys(names, salt)
        return BlocksStored(
            block_hashes=names,
            parent_hash=parent,
            token_ids=tuple(event.token_ids[: num_blocks * event.block_size]),
            block_size=event.block_size,
            tier=_tier(event.medium),
            lora=lora,
            cache_salt=salt,
        )


def _tier(medium: str | None) -> KVTier:
    """What nobody has heard of counts as the slowest."""
    return KVTier.DEVICE if medium is None else TIER_OF_MEDIUM.get(medium.upper(), KVTier.REMOTE)
