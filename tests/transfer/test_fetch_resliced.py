"""Hand-over between memories that cut the same KV differently, over every way blocks can travel."""

from __future__ import annotations

import numpy as np
import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.transfer import HostBlockMemory
from dynamo_sdk.types import KVLayout, KVShape, TransferSettings

from .conftest import host_memory
from .test_fetch import ELSEWHERE, CopiedMemory, fetching, serving

pytestmark = pytest.mark.anyio

NUM_TOKENS, NUM_LAYERS, NUM_HEADS, HEAD_BYTES = 40, 3, 4, 32
KV = np.random.default_rng(3).integers(
    0, 256, (NUM_LAYERS, 2, NUM_HEADS, NUM_TOKENS, HEAD_BYTES), dtype=np.uint8
)


def layout(block_size: int, heads: tuple[int, int] = (0, NUM_HEADS), *, is_nhd: bool = False) -> KVLayout:
    shape = KVShape(
        model="m",
        dtype="u8",
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        head_bytes=HEAD_BYTES,
        first_head=heads[0],
        num_own_heads=heads[1] - heads[0],
        order=("layer", "kv", "token", "head") if is_nhd else ("layer", "kv", "head", "token"),
    )
    return KVLayout(
        fingerprint=f"{shape}", block_size=block_size, block_bytes=shape.block_bytes(block_size), shape=shape
    )


def as_tokens(memory: HostBlockMemory, heads: tuple[int, int]) -> np.ndarray:
    """A view ``[block, layer, kv, head, token, byte]`` of the whole memory."""
    its = memory.layout
    view = memory.blocks.view()
    num_heads = heads[1] - heads[0]
    if its.shape.order[2] == "token":
        boxes = view.reshape(-1, NUM_LAYERS, 2, its.block_size, num_heads, HEAD_BYTES).swapaxes(3, 4)
    else:
        boxes = view.reshape(-1, NUM_LAYERS, 2, num_heads, its.block_size, HEAD_BYTES)
    return boxes


def fill_with_kv(memory: HostBlockMemory, block_ids: list[int], heads: tuple[int, int]) -> None:
    size = memory.layout.block_size
    boxes = as_tokens(memory, heads)
    for index, block_id in enumerate(block_ids):
        tokens = KV[:, :, heads[0] : heads[1], index * size : (index + 1) * size]
        boxes[block_id, :, :, :, : tokens.shape[3]] = tokens


def holds_kv(memory: HostBlockMemory, block_ids: list[int], heads: tuple[int, int], first: int = 0) -> bool:
    size = memory.layout.block_size
    boxes = as_tokens(memory, heads)
    for index, block_id in list(enumerate(block_ids))[first:]:
        tokens = KV[:, :, heads[0] : heads[1], index * size : (index + 1) * size]
        if not (boxes[block_id, :, :, :, : tokens.shape[3]] == tokens).all():
            return False
    return True


WAYS = [("unix:{}", None, "shm"), ("tcp:127.0.0.1:0", ELSEWHERE, "tcp")]


@pytest.mark.parametrize(("address", "host", "back_end"), WAYS)
@pytest.mark.parametrize(("theirs", "ours"), [(8, 16), (16, 8), (8, 40), (8, 8)])
@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize("verifies", [True, False])
async def test_other_block_sizes_and_orders(
    tmp_path,
    memories,
    releases,
    address,
    host,
    back_end,
    theirs,
    ours,
    is_mapped,
    verifies,
) -> None:
    num_theirs, num_ours = -(-NUM_TOKENS // theirs), -(-NUM_TOKENS // ours)
    source = host_memory(memories, 12, layout(theirs))
    inner = host_memory(memories, 12, layout(ours, is_nhd=True))
    own = inner if is_mapped else CopiedMemory(inner)
    held, own_ids = list(range(11, 11 - num_theirs, -1)), [2 * n for n in range(num_ours)]
    fill_with_kv(source, held, (0, NUM_HEADS))
    settings = TransferSettings(verify=verifies)
    async with serving(address.format(tmp_path / "s")) as server, fetching(host=host, settings=settings) as f:
        first = 0
        for request_id in ("all", "some"):
            params = server.issue(request_id, held, source, ttl_s=30, release=releases.of(request_id))
            report = await f.fetch(params, list(enumerate(own_ids))[first:], own, timeout_s=10)
            assert (report.back_end, report.num_blocks) == (back_end, num_ours - first)
            assert holds_kv(inner, own_ids, (0, NUM_HEADS), first)
            inner.blocks[:] = 0
            first = num_ours - 1  # those before are cached
        assert not inner.blocks[own_ids[:first]].any()
    assert releases.counts == {"all": 1, "some": 1}


@pytest.mark.parametrize(("address", "host", "back_end"), WAYS)
async def test_other_degrees_of_tensor_parallelism(
    tmp_path,
    memories,
    releases,
    address,
    host,
    back_end,
) -> None:
    """From one rank to two, and from two ranks back to one."""
    whole, halves = (0, NUM_HEADS), [(0, 2), (2, NUM_HEADS)]
    source, back = (host_memory(memories, 5, layout(8)) for _ in range(2))
    ranks = [host_memory(memories, 5, layout(16, heads)) for heads in halves]
    held, own_ids = [4, 3, 2, 1, 0], [0, 3, 1]
    fill_with_kv(source, held, whole)
    async with serving(address.format(tmp_path / "s")) as server, fetching(host=host) as fetcher:

        def ticket(name, memory, ids):
            return server.issue(name, ids, memory, ttl_s=30, release=releases.of(name))

        for heads, rank in zip(halves, ranks, strict=True):
            params = ticket(f"to {heads}", source, held)
            report = await fetcher.fetch(params, list(enumerate(own_ids)), rank, timeout_s=10)
            assert report.back_end == back_end
            assert holds_kv(rank, own_ids, heads)
        pairs = list(enumerate(held))
        for heads, rank in zip(halves, ranks, strict=True):
            params = ticket(f"from {heads}", rank, own_ids)
            await fetcher.fetch(params, pairs, back, timeout_s=10, allows_missing_heads=True)
        assert holds_kv(back, held, whole)
        with pytest.raises(TransferError, match="all of its ranks"):
            await fetcher.fetch(ticket("part", ranks[0], own_ids), pairs, back, timeout_s=10)


async def test_what_cannot_fit_is_refused_before_anybody_is_asked(
    tmp_path,
    memories,
    releases,
) -> None:
    source, own = host_memory(memories, 2, layout(8)), host_memory(memories, 2, layout(12))
    async with serving(f"unix:{tmp_path}/s") as server, fetching() as fetcher:
        params = server.issue("r", [0, 1], source, ttl_s=30, release=releases.of("r"))
        with pytest.raises(TransferError, match="block size 12 is no multiple of 8"):
            await fetcher.fetch(params, [(0, 0)], own, timeout_s=10)
        assert server.statistics().num_connections == 0
        same = host_memory(memories, 2, layout(16))
        with pytest.raises(TransferError, match="begins behind the 2 blocks"):
            await fetcher.fetch(params, [(1, 0)], same, timeout_s=10)
