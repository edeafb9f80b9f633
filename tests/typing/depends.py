"""``depends`` has the type of the class it names; markers change no type. Checked, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

from dynamo_sdk import Graph, depends, endpoint, service
from dynamo_sdk.graph import Dependency


@service
class Embedder:
    @endpoint
    async def embed(self, text: str, *, scale: float = 1.0) -> list[float]:
        return [scale] * len(text)

    @endpoint
    async def words(self, text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word


@service
class Search:
    embedder = depends(Embedder)
    later = depends(lambda: Later)

    @endpoint
    async def find(self, query: str) -> tuple[int, ...]:
        assert_type(self.embedder, Embedder)
        assert_type(self.later, Later)
        vector = await self.embedder.embed(query, scale=2.0)
        assert_type(vector, list[float])
        async for word in self.embedder.words(query):
            assert_type(word, str)
        return tuple(int(value) for value in vector)


@service
class Later:
    @endpoint
    async def ping(self) -> None: ...


assert_type(service(Embedder), type[Embedder])
assert_type(Search(), Search)
assert_type(Search().embedder, Embedder)
assert_type(Graph(Search, router="random").roots, tuple[type, ...])


class FakeEmbedder(Embedder):
    async def embed(self, text: str, *, scale: float = 1.0) -> list[float]:
        return [0.0]


async def a_service_alone_is_just_constructed() -> None:
    search = Search()
    search.embedder = FakeEmbedder()
    assert_type(await search.find("what"), tuple[int, ...])
    assert_type(await Embedder().embed("text"), list[float])


def the_real_thing_is_a_descriptor() -> None:
    dependency = Dependency(Embedder)
    assert_type(dependency.target, type[Embedder])
    assert_type(dependency.__get__(Search(), Search), Embedder)
    assert_type(dependency.__get__(None, Search), Dependency[Embedder])
