from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from dynamo_sdk.services.openai.merge import merge

pytestmark = pytest.mark.anyio


class Source:
    """Yields ``items``; waits for ``gate`` before the last one; notes its closing."""

    def __init__(self, items: list[int], *, gate: asyncio.Event | None = None, error: bool = False) -> None:
        self.items, self.gate, self.error = items, gate, error
        self.is_closed = False
        self.num_yielded = 0

    async def stream(self, index: int = 0) -> AsyncGenerator[tuple[int, int], None]:
        try:
            for item in self.items:
                if self.gate is not None and item == self.items[-1]:
                    await self.gate.wait()
                self.num_yielded += 1
                yield index, item
            if self.error:
                raise ValueError("broken")
        finally:
            self.is_closed = True


@pytest.mark.parametrize("num_streams", [1, 2, 7])
async def test_each_stream_arrives_whole_and_in_order(num_streams: int) -> None:
    sources = [Source(list(range(20))) for _ in range(num_streams)]
    got: dict[int, list[int]] = {}
    async for index, item in merge([source.stream(index) for index, source in enumerate(sources)]):
        got.setdefault(index, []).append(item)
    assert got == {index: list(range(20)) for index in range(num_streams)}
    assert all(source.is_closed for source in sources)


async def test_a_slow_stream_does_not_hold_up_another() -> None:
    gate = asyncio.Event()
    slow, quick = Source([1], gate=gate), Source([1, 2, 3])
    merged = merge([slow.stream(0), quick.stream(1)])
    assert [await anext(merged) for _ in range(3)] == [(1, 1), (1, 2), (1, 3)]
    gate.set()
    assert await anext(merged) == (0, 1)
    await merged.aclose()


async def test_closing_closes_every_stream_at_once() -> None:
    sources = [Source([1, 2], gate=asyncio.Event()) for _ in range(3)]
    before = asyncio.all_tasks()
    merged = merge([source.stream(index) for index, source in enumerate(sources)])
    await anext(merged)
    await merged.aclose()
    assert all(source.is_closed for source in sources if source.num_yielded)
    assert asyncio.all_tasks() == before


async def test_an_error_ends_all() -> None:
    stuck, broken = Source([1, 2], gate=asyncio.Event()), Source([1], error=True)
    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="broken"):
        async for _ in merge([stuck.stream(), broken.stream()]):
            pass
    assert stuck.is_closed
    assert asyncio.all_tasks() == before


async def test_a_slow_reader_holds_the_streams_back() -> None:
    source, other = Source(list(range(1000))), Source(list(range(1000)))
    merged = merge([source.stream(), other.stream()])
    await anext(merged)
    for _ in range(100):
        await asyncio.sleep(0)
    assert source.num_yielded + other.num_yielded < 20
    await merged.aclose()
