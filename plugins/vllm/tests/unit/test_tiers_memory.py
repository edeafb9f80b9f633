"""vLLM's pages as bytes, in the layouts of its backends; and which of them still hold what they held."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from dynamo_sdk.errors import ConfigError  # noqa: E402
from dynamo_sdk.kv import CachedBlock  # noqa: E402
from dynamo_sdk_vllm.tiers.device import DeviceBlocks  # noqa: E402
from dynamo_sdk_vllm.tiers.memory import PagedMemory  # noqa: E402

NUM_BLOCKS = 5
LAYOUTS = {
    "blocks first": lambda: torch.zeros(NUM_BLOCKS, 2, 4, 6),
    "keys and values apart": lambda: torch.zeros(2, NUM_BLOCKS, 4, 3),
    "heads outside tokens": lambda: torch.zeros(NUM_BLOCKS, 3, 4, 6).permute(0, 2, 1, 3),
    "layers inside blocks": lambda: torch.zeros(NUM_BLOCKS, 2, 4, 6)[:, 1],
    "half precision": lambda: torch.zeros(NUM_BLOCKS, 8, 5, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_can_be_written_elsewhere(layout: str):
    caches = {f"layer{number}": LAYOUTS[layout]() for number in range(3)}
    numbers = itertools.count(1)
    for tensor in caches.values():
        tensor.copy_(torch.tensor([next(numbers) for _ in range(tensor.numel())]).view(tensor.shape))
    memory = PagedMemory(caches, num_blocks=NUM_BLOCKS, block_size=4)
    before = {name: tensor.clone() for name, tensor in caches.items()}
    per_block = sum(tensor.numel() * tensor.element_size() for tensor in caches.values()) // NUM_BLOCKS
    assert memory.layout.block_bytes == per_block
    buffer = memoryview(bytearray(2 * per_block))
    memory.read([4, 1], buffer)
    memory.write([0, 3], buffer)
    dim = 0 if layout != "keys and values apart" else 1
    for name, tensor in caches.items():
        for source, target in ((4, 0), (1, 3), (4, 4), (1, 1), (2, 2)):
            assert torch.equal(tensor.select(dim, target), before[name].select(dim, source)), (name, target)


def test_layers_that_share_pages_count_once():
    pages = torch.zeros(NUM_BLOCKS, 8)
    alone = PagedMemory({"a": pages}, num_blocks=NUM_BLOCKS, block_size=4)
    assert PagedMemory({"a": pages, "b": pages}, num_blocks=NUM_BLOCKS, block_size=4).layout == alone.layout


def fingerprint(pages: object, num_blocks: int = NUM_BLOCKS) -> str:
    return PagedMemory({"a": pages}, num_blocks=num_blocks, block_size=4).layout.fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_the_same_on_a_device_of_another_size(layout: str):
    pages = LAYOUTS[layout]()
    more = pages.transpose(0, 1) if layout == "keys and values apart" else pages
    more = torch.cat([more, more])
    more = more.transpose(0, 1).contiguous() if layout == "keys and values apart" else more
    if layout == "heads outside tokens":
        more = more.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert fingerprint(more, 2 * NUM_BLOCKS) == fingerprint(pages)


def test_what_lies_in_another_order_is_another_layout():
    tokens_outside = torch.zeros(NUM_BLOCKS, 4, 4, 6)
    heads_outside = tokens_outside.permute(0, 2, 1, 3)
    assert heads_outside.shape == tokens_outside.shape
    others = [heads_outside, tokens_outside.half(), torch.zeros(NUM_BLOCKS, 4, 6, 4)]
    assert fingerprint(tokens_outside) not in {fingerprint(other) for other in others}


@pytest.mark.parametrize(
    "pages", [torch.zeros(3, 3), [torch.zeros(NUM_BLOCKS, 2)], torch.zeros(NUM_BLOCKS, 4, 8)[:, :, ::2]]
)
def test_what_is_no_run_of_bytes_is_refused(pages: object):
    with pytest.raises(ConfigError, match="no tiers"):
        PagedMemory({"a": pages}, num_blocks=NUM_BLOCKS, block_size=4)


def test_a_block_that_is_used_again_holds_nothing_any_more():
    device = DeviceBlocks(NUM_BLOCKS)
    one, other = (CachedBlock(bytes([number]) * 16, None, b"", None, None) for number in (1, 2))
    device.put([(one, 3)])
    place = device.place_of(one.key)
    assert place is not None
    assert device.is_unchanged(place)
    device.forget([3, 4])
    assert not device.is_unchanged(place)
    assert device.place_of(one.key) is None
    device.put([(other, 3), (one, 4)])
    assert not device.is_unchanged(place)
    assert device.place_of(one.key).block_id == 4
    device.put([(one, 2)])
    device.forget([4])
    assert device.place_of(one.key).block_id == 2, "the older copy is gone, this one is not"
