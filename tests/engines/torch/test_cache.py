"""Block memory: bytes in, the same bytes out; mapped by another process, the same bytes again."""

from __future__ import annotations

import mmap
import os
import sys

import pytest
import torch

from dynamo_sdk.engines.torch.cache import KVGeometry, PagedKVCache

GEOMETRY = KVGeometry(num_layers=3, num_kv_heads=2, head_dim=8, dtype=torch.float32)
BLOCK_BYTES = 3 * 2 * 2 * 4 * 8 * 4


def new_cache(device: str = "cpu") -> PagedKVCache:
    return PagedKVCache(
        GEOMETRY, block_size=4, num_blocks=10, device=torch.device(device), model_digest="abc"
    )


def test_a_block_is_contiguous_over_layers(device: str) -> None:
    cache = new_cache(device)
    assert cache.layout.block_bytes == BLOCK_BYTES
    assert "abc/float32/layers3/heads2x8" in cache.layout.fingerprint
    row = torch.arange(8, dtype=torch.float32, device=device)
    # layer 2, block 7, values, head 1, token 3
    cache.token_rows[2][7 * cache.rows_per_block * 4 + (1 * 2 + 1) * 4 + 3] = row
    block = bytearray(BLOCK_BYTES)
    cache.read([7], memoryview(block))
    as_tensor = torch.frombuffer(block, dtype=torch.float32).view(3, 2, 2, 4, 8)
    assert as_tensor[2, 1, 1, 3].tolist() == row.tolist()
    assert int(as_tensor.count_nonzero()) == 7
    cache.close()


def test_read_returns_what_write_put_in_order(device: str) -> None:
    cache = new_cache(device)
    blocks = os.urandom(3 * BLOCK_BYTES)
    cache.write([8, 0, 5], memoryview(blocks))
    found = bytearray(2 * BLOCK_BYTES)
    cache.read([5, 8], memoryview(found))
    assert found == blocks[2 * BLOCK_BYTES :] + blocks[:BLOCK_BYTES]
    cache.read([], memoryview(b""))
    cache.close()


@pytest.mark.parametrize(
    ("block_ids", "num_bytes"), [([1], BLOCK_BYTES - 1), ([10], BLOCK_BYTES), ([-1], BLOCK_BYTES)]
)
def test_wrong_sizes_and_ids_are_refused(block_ids: list[int], num_bytes: int) -> None:
    cache = new_cache()
    with pytest.raises(ValueError):
        cache.read(block_ids, memoryview(bytearray(num_bytes)))
    with pytest.raises(ValueError):
        cache.write(block_ids, memoryview(bytes(num_bytes)))
    cache.close()


@pytest.mark.skipif(sys.platform != "linux", reason="memfd is a Linux thing")
def test_the_shared_region_shows_the_same_bytes() -> None:
    cache = new_cache()
    region = cache.shared_region
    assert region is not None
    assert region.size_bytes == 10 * BLOCK_BYTES
    blocks = os.urandom(BLOCK_BYTES)
    cache.write([4], memoryview(blocks))
    with open(f"/proc/{region.pid}/fd/{region.fd}", "r+b") as file:
        with mmap.mmap(file.fileno(), region.size_bytes) as mapped:
            assert mapped[4 * BLOCK_BYTES : 5 * BLOCK_BYTES] == blocks
            mapped[:4] = b"\0\0\x80?"  # 1.0
    assert cache.token_rows[0][0, 0].item() == 1.0
    cache.close()
    cache.close()
    with pytest.raises(OSError):
        os.fstat(region.fd)
    assert cache.shared_region is None
