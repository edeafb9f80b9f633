"""A service is a class: construct it, give it what it depends on, and call it. No graph, no socket.

    pytest examples/06_testing_a_service.py

What a fake cannot show (encoding, wiring, start and stop) is shown by `graph.local()`, in the same test file.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dynamo_sdk import Graph, depends, endpoint, service
from dynamo_sdk.errors import GraphError


@service
class Translator:
    @endpoint
    async def translate(self, word: str) -> str:
        return {"block": "Block", "worker": "Arbeiter"}.get(word, word)


@service
class Speaker:
    translator = depends(Translator)

    @endpoint
    async def speak(self, text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield await self.translator.translate(word)


class Shouting(Translator):
    async def translate(self, word: str) -> str:
        return word.upper()


async def read(speaker: Speaker, text: str) -> list[str]:
    return [word async for word in speaker.speak(text)]


def test_alone_with_a_fake() -> None:
    speaker = Speaker()
    speaker.translator = Shouting()
    assert asyncio.run(read(speaker, "a worker")) == ["A", "WORKER"]


def test_a_missing_fake_is_named() -> None:
    with pytest.raises(GraphError, match=r"speaker.translator = FakeTranslator\(\)"):
        asyncio.run(read(Speaker(), "a worker"))


def test_the_whole_graph() -> None:
    async def ask() -> list[str]:
        async with Graph(Speaker).local() as app:
            return await read(app.client(Speaker), "a worker")

    assert asyncio.run(ask()) == ["a", "Arbeiter"]
