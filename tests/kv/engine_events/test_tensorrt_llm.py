"""Events in the form that TensorRT-LLM documents."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo_sdk.interfaces.router import Overlap
from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.kv.engine_events import TensorRTEventDecoder
from dynamo_sdk.types import BlocksMoved, BlocksRemoved, BlocksStored, KVEvent, KVTier, pack_tokens

BLOCK = 4


def block(name: int | str, *tokens: int, level: int = 0, **more: object) -> dict[str, Any]:
    return {
        "type": "stored_block",
        "block_hash": name,
        "tokens": [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens],
        "cache_level": level,
        "priority": 35,
        **more,
    }


def stored(*blocks: dict[str, Any], parent: int | str | None = None) -> dict[str, Any]:
    return {"type": "stored", "parent_hash": parent, "blocks": list(blocks)}


class Rank:
    """A decoder and the number of the next event."""

    def __init__(self) -> None:
        self.decoder = TensorRTEventDecoder(BLOCK)
        self.number = 0

    def tell(self, data: dict[str, Any], *, window: int = 4096, **more: object) -> tuple[KVEvent, ...]:
        event = {"event_id": self.number, "window_size": window, "data": data, **more}
        batch = self.decoder.decode(event)
        assert batch.sequence == self.number
        self.number += 1
        return batch.events


def test_blocks_are_stored_moved_and_removed():
    rank, index = Rank(), PrefixIndex()
    keys = prefix_keys(pack_tokens(range(1, 13)), BLOCK)
    assert rank.tell({"type": "created", "num_blocks_per_cache_level": [8, 8]}) == ()

    def apply(data: dict[str, Any]) -> dict[int, Overlap]:
        for event in rank.tell(data):
            assert index.apply(0, event)
        return index.match(keys)

    assert apply(stored(block(2**64 - 1, 1, 2, 3, 4), block(12, 5, 6, 7, 8))) == {0: Overlap(device_blocks=2)}
    assert apply(stored(block(13, 9, 10, 11, 12), parent=12)) == {0: Overlap(device_blocks=3)}
    offloaded = {"type": "event_diff", "new_value": 1, "old_value": 0}
    assert apply({"type": "updated", "block_hash": 13, "cache_level": offloaded, "priority": None}) == {
        0: Overlap(device_blocks=2, host_blocks=1)
    }
    back = {"type": "event_diff", "new_value": 0, "old_value": 1}
    assert apply({"type": "updated", "block_hash": 13, "cache_level": back}) == {0: Overlap(device_blocks=3)}
    apply({"type": "updated", "block_hash": 12, "cache_level": offloaded})
    assert apply({"type": "removed", "block_hashes": [13, 12]}) == {0: Overlap(device_blocks=1)}


def test_blocks_that_are_not_full_are_kept_to_ourselves():
    rank = Rank()
    [event] = rank.tell(stored(block(1, 1, 2, 3, 4), block(2, 5, 6)))
    assert isinstance(event, BlocksStored)
    assert event.block_hashes == (1,)
    change = {"new_value": 1, "old_value": 0}
    assert rank.tell({"type": "updated", "block_hash": 2, "cache_level": change}) == ()
    assert rank.tell({"type": "removed", "block_hashes": [2]}) == ()
    [event] = rank.tell(stored(block(2, 5, 6, 7, 8), parent=1))
    assert isinstance(event, BlocksStored)
    assert rank.tell({"type": "removed", "block_hashes": [2]}) == (BlocksRemoved(block_hashes=(2,)),)


def test_blocks_with_more_than_tokens_are_left_out():
    rank = Rank()
    with_image = block(1, 1, 2, 3, 4)
    with_image["tokens"][2]["token_extra_id"] = 77
    assert rank.tell(stored(with_image, block(2, 5, 6, 7, 8))) == ()
    assert rank.tell(stored(block(3, 1, 2, 3, 4, mm_keys=[{"hash": "ab"}]))) == ()
    assert rank.tell({"type": "removed", "block_hashes": [1, 2, 3]}) == ()


def test_one_event_for_each_adapter_and_tier():
    rank = Rank()
    told = rank.tell(stored(block(1, 1, 2, 3, 4, level=1), block(2, 5, 6, 7, 8), parent=9))
    assert [(event.tier, event.parent_hash) for event in told if isinstance(event, BlocksStored)] == [
        (KVTier.HOST, 9),
        (KVTier.DEVICE, 1),
    ]
    assert rank.tell({"type": "removed", "block_hashes": [1, 2]}) == (
        BlocksRemoved(block_hashes=(1,), tier=KVTier.HOST),
        BlocksRemoved(block_hashes=(2,)),
    )


def test_only_the_largest_attention_window_counts():
    rank = Rank()
    for window in (1024, 4096):
        rank.tell({"type": "created", "num_blocks_per_cache_level": [8]}, window=window)
    assert rank.tell(stored(block(1, 1, 2, 3, 4)), window=1024) == ()
    assert len(rank.tell(stored(block(1, 1, 2, 3, 4)), window=4096)) == 1


def test_names_in_hexadecimal_and_the_rank_of_the_event():
    rank = Rank()
    [event] = rank.tell(stored(block("00ff" * 8, 1, 2, 3, 4)))
    assert isinstance(event, BlocksStored)
    assert event.block_hashes == (bytes.fromhex("00ff" * 8),)
    batch = rank.decoder.decode(
        {"event_id": 9, "attention_dp_rank": 2, "data": {"type": "removed", "block_hashes": ["00ff" * 8]}}
    )
    assert (batch.sequence, batch.dp_rank) == (9, 2)
    assert batch.events == (BlocksRemoved(block_hashes=(bytes.fromhex("00ff" * 8),)),)


def test_a_change_of_priority_is_no_move():
    rank = Rank()
    rank.tell(stored(block(1, 1, 2, 3, 4)))
    told = rank.tell({"type": "updated", "block_hash": 1, "priority": {"new_value": 50, "old_value": 35}})
    assert not any(isinstance(event, BlocksMoved) for event in told)


@pytest.mark.parametrize("event", [{}, {"event_id": 1, "data": {"type": "lost"}}, {"event_id": "x"}])
def test_anything_else_is_a_value_error(event: dict[str, Any]):
    with pytest.raises(ValueError):
        TensorRTEventDecoder(BLOCK).decode(event)
