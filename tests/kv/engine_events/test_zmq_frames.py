"""Messages as vLLM and SGLang were seen to send them."""

from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.kv.engine_events import ZmqEventDecoder
from dynamo_sdk.types import BlocksCleared, BlocksRemoved, BlocksStored, KVEvent, KVTier, pack_tokens

BLOCK = 32
TOKENS = list(range(10, 10 + 3 * BLOCK))
VLLM_STORED = {
    "type": "BlockStored",
    "block_hashes": [4983110391196617255, 9334213283667987988, 18446744073709551615],
    "parent_block_hash": None,
    "token_ids": TOKENS,
    "block_size": BLOCK,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [None, None, None],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
}
VLLM_REMOVED = {
    "type": "BlockRemoved",
    "block_hashes": [9334213283667987988],
    "medium": "GPU",
    "group_idx": 0,
}


def frames(*events: object, sequence: int = 0, rank: int | None = 0) -> list[bytes]:
    payload = [1763740000.5, list(events), rank]
    return [b"kv-events", sequence.to_bytes(8, "big"), msgspec.msgpack.encode(payload)]


def decode(*events: object) -> tuple[KVEvent, ...]:
    batch = ZmqEventDecoder().decode(frames(*events))
    assert batch is not None
    return batch.events


def test_a_batch_of_vllm():
    batch = ZmqEventDecoder().decode(
        frames(VLLM_STORED, VLLM_REMOVED, {"type": "AllBlocksCleared"}, sequence=7, rank=1)
    )
    assert batch is not None
    assert (batch.sequence, batch.dp_rank) == (7, 1)
    assert batch.events == (
        BlocksStored(
            block_hashes=(4983110391196617255, 9334213283667987988, 18446744073709551615),
            parent_hash=None,
            token_ids=tuple(TOKENS),
            block_size=BLOCK,
        ),
        BlocksRemoved(block_hashes=(9334213283667987988,)),
        BlocksCleared(),
    )


def test_a_batch_of_sglang():
    """Signed names, more media, salt and adapter as fields, no rank without attention data parallelism."""
    stored = {
        "type": "BlockStored",
        "block_hashes": [-3, 5],
        "parent_block_hash": -9,
        "token_ids": list(range(32)),
        "block_size": 16,
        "lora_id": None,
        "medium": "CPU_PINNED",
        "cache_salt": "s",
        "lora_name": "sql",
        "session_id": "unknown to us",
    }
    removed = {"type": "BlockRemoved", "block_hashes": [-3], "medium": "DISK"}
    batch = ZmqEventDecoder(dp_rank=3).decode(frames(stored, removed, rank=None))
    assert batch is not None
    assert batch.dp_rank == 3
    assert batch.events == (
        BlocksStored(
            block_hashes=(-3, 5),
            parent_hash=-9,
            token_ids=tuple(range(32)),
            block_size=16,
            tier=KVTier.HOST,
            lora="sql",
            cache_salt="s",
        ),
        BlocksRemoved(block_hashes=(-3,), tier=KVTier.DISK),
    )


def test_names_may_be_bytes():
    names = [bytes([n] * 32) for n in range(3)]
    [event] = decode({**VLLM_STORED, "block_hashes": names})
    assert isinstance(event, BlocksStored)
    assert event.block_hashes == tuple(names)


def test_a_salt_that_only_the_first_block_says_counts_for_what_follows():
    decoder, index = ZmqEventDecoder(), PrefixIndex()
    first = {**VLLM_STORED, "block_hashes": [1, 2], "token_ids": TOKENS[:64], "extra_keys": [["x"], None]}
    second = {**VLLM_STORED, "block_hashes": [3], "parent_block_hash": 2, "token_ids": TOKENS[64:]}
    for number, event in enumerate((first, second)):
        batch = decoder.decode(frames(event, sequence=number))
        assert batch is not None
        for told in batch.events:
            assert index.apply(0, told)
    tokens = pack_tokens(TOKENS)
    assert index.match(prefix_keys(tokens, BLOCK)) == {}
    assert index.match(prefix_keys(tokens, BLOCK, cache_salt="x"))[0].device_blocks == 3


def test_the_adapter_is_no_other_key():
    event = {**VLLM_STORED, "lora_name": "ad1", "lora_id": 1, "extra_keys": [["ad1"], ["ad1"], ["ad1"]]}
    [stored] = decode(event)
    assert isinstance(stored, BlocksStored)
    assert (stored.lora, stored.cache_salt, len(stored.block_hashes)) == ("ad1", None, 3)


def test_blocks_that_depend_on_an_image_are_left_out():
    [stored] = decode({**VLLM_STORED, "extra_keys": [None, [["image-hash", 3]], None]})
    assert isinstance(stored, BlocksStored)
    assert len(stored.block_hashes) == 1
    assert len(stored.token_ids) == BLOCK
    assert decode({**VLLM_STORED, "extra_keys": [["image", "salt"], None, None]}) == ()
    assert decode({**VLLM_STORED, "parent_block_hash": 1, "extra_keys": [["image"], None, None]}) == ()


def test_groups_that_forget_are_left_out():
    """Blocks of a sliding window come and go while the full ones stay."""
    sliding = {**VLLM_STORED, "group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    told = decode(VLLM_STORED, sliding, {**VLLM_REMOVED, "group_idx": 1}, VLLM_REMOVED)
    assert [type(event) for event in told] == [BlocksStored, BlocksRemoved]


def test_a_medium_that_nobody_knows_is_far_away():
    [stored] = decode({**VLLM_STORED, "medium": "TAPE"})
    assert isinstance(stored, BlocksStored)
    assert stored.tier is KVTier.REMOTE


def test_the_end_of_a_replay_is_no_batch():
    assert ZmqEventDecoder().decode([b"", (-1).to_bytes(8, "big", signed=True), b""]) is None


@pytest.mark.parametrize(
    "message",
    [
        [],
        [b"topic", bytes(8)],
        [b"topic", bytes(8), b""],
        [b"topic", bytes(8), b"\x93\xc0\xc0\xc0"],
        frames({"type": "BlockExploded"}),
        frames({**VLLM_STORED, "token_ids": "text"}),
    ],
)
def test_anything_else_is_a_value_error(message: list[bytes]):
    with pytest.raises(ValueError):
        ZmqEventDecoder().decode(message)
