"""Checksums on demand: a byte that changes on its way is found, whichever way it went."""

from __future__ import annotations

import pytest

from dynamo_sdk.errors import TransferError
from dynamo_sdk.types import TransferSettings

from .conftest import content, fill, host_memory, pattern
from .test_fetch import ELSEWHERE, CopiedMemory, fetching, serving

pytestmark = pytest.mark.anyio

VERIFIED = TransferSettings(verify=True)


class Forgetful(CopiedMemory):
    """Writes one bit wrong."""

    def write(self, block_ids, data) -> None:
        wrong = bytearray(data)
        wrong[-1] ^= 1
        super().write(block_ids, memoryview(wrong))


@pytest.mark.parametrize("host", [None, ELSEWHERE])
@pytest.mark.parametrize("is_mapped", [True, False])
async def test_sound_blocks_pass(memories, host, is_mapped) -> None:
    source, inner = host_memory(memories, 8), host_memory(memories, 8)
    fill(source, 8)
    own = inner if is_mapped else CopiedMemory(inner)
    held, pairs = [7, 3, 4, 4], [(3, 0), (0, 5), (1, 1), (2, 2)]
    async with serving("tcp:127.0.0.1:0") as server, fetching(host=host, settings=VERIFIED) as fetcher:
        params = server.issue("r", held, source, ttl_s=30, release=lambda: None)
        await fetcher.fetch(params, pairs, own, timeout_s=10)
        params = server.issue("nothing", held, source, ttl_s=30, release=lambda: None)
        await fetcher.fetch(params, [], own, timeout_s=10)
    for index, own_id in pairs:
        assert content(inner, own_id) == pattern(held[index], 4096)


@pytest.mark.parametrize("host", [None, ELSEWHERE])
async def test_a_wrong_bit_is_an_error(memories, host) -> None:
    source, inner = host_memory(memories, 4), host_memory(memories, 4)
    fill(source, 4)
    released: list[str] = []
    async with serving("tcp:127.0.0.1:0") as server:
        async with fetching(host=host, settings=VERIFIED) as fetcher:
            params = server.issue("r", [0, 1], source, ttl_s=30, release=lambda: released.append("r"))
            with pytest.raises(TransferError, match="checksums differ"):
                await fetcher.fetch(params, [(0, 2), (1, 3)], Forgetful(inner), timeout_s=10)
            assert released == ["r"]
        async with fetching(host=host) as fetcher:  # nobody asked: nobody notices
            params = server.issue("r", [0, 1], source, ttl_s=30, release=lambda: None)
            await fetcher.fetch(params, [(0, 2), (1, 3)], Forgetful(inner), timeout_s=10)
