"""Services of your own: any class, with typed endpoints that others call as if they were local.

    python examples/03_own_services.py
    dynamo-sdk run examples/03_own_services.py --set services.Library.replicas=2

Arguments and results: whatever msgspec can encode (numbers, lists, dataclasses, structs) and pydantic models.
Type checkers see the real signatures through `depends`.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dynamo_sdk import Graph, depends, endpoint, service


@dataclass
class Passage:
    title: str
    text: str


@service
class Library:
    def __init__(self, *, max_passages: int = 2) -> None:
        """Arguments come from the deploy file: `services.Library.args.max_passages`."""
        self.max_passages = max_passages

    async def on_start(self) -> None:
        """Called before the first request; `on_stop` after the last one. Both are optional."""
        self.passages = [
            Passage("Prefill", "Prefill reads the prompt."),
            Passage("Decode", "Decode writes the answer, token by token."),
            Passage("Blocks", "The KV cache is kept in blocks, from prefill to decode."),
        ]

    @endpoint
    async def find(self, word: str) -> list[Passage]:
        found = [passage for passage in self.passages if word.lower() in passage.text.lower()]
        return found[: self.max_passages]


@service
class Writer:
    library = depends(Library)

    @endpoint
    async def write(self, topics: list[str]) -> AsyncIterator[str]:
        """An async generator is a stream; when its reader leaves, it is closed."""
        for topic in topics:
            for passage in await self.library.find(topic):
                yield f"{passage.title}: {passage.text}"


graph = Graph(Writer)


async def main() -> None:
    async with graph.local({"services": {"Library": {"args": {"max_passages": 1}}}}) as app:
        async for line in app.client(Writer).write(["token", "blocks"]):
            print(line)


if __name__ == "__main__":
    asyncio.run(main())
