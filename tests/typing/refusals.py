"""What type checkers refuse. Each ignore is needed: an unused one is an error itself. Never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from dynamo_sdk import Graph, depends, endpoint, service


@service
class Embedder:
    @endpoint
    async def embed(self, text: str) -> list[float]:
        return [float(len(text))]

    @endpoint  # type: ignore[type-var]
    def blocking(self) -> int:
        return 0


@service
class Search:
    embedder = depends(Embedder)
    number = depends(3)  # type: ignore[call-overload]

    @endpoint
    async def find(self, query: str) -> int:
        await self.embedder.embed(query, 3)  # type: ignore[call-arg]
        await self.embedder.embed(b"bytes")  # type: ignore[arg-type]
        await self.embedder.nothing()  # type: ignore[attr-defined]
        words: list[str] = await self.embedder.embed(query)  # type: ignore[assignment]
        return len(words)


Graph(Search())  # type: ignore[arg-type]
Graph(Search, replicas=2)  # type: ignore[call-arg]
