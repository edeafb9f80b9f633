"""Long prompts are let go of with their request, without help of the garbage collector, which runs rarely."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from .fakes import MODEL, ScriptedBackend, running
from .sockets import connected, post

pytestmark = pytest.mark.anyio

BODY_CHARS = 1_000_000
NUM_REQUESTS = 8


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def body(kind: str, number: int) -> dict[str, object]:
    """``fits``: the prompt is short and the body is long all the same."""
    padding = f"{number} " * (BODY_CHARS // len(f"{number} "))
    content = padding if kind == "too-long" else f"what is {number}?"
    ignored = "" if kind == "too-long" else padding
    messages = [{"role": "user", "content": content}]
    more = {"stream": True} if kind == "streamed" else {}
    return {"model": MODEL, "messages": messages, "max_tokens": 4, "metadata": {"x": ignored}, **more}


async def ask(address: tuple[str, int], kind: str, number: int) -> int:
    """The status; the connection is closed, as after a client that leaves."""
    async with connected(address) as client:
        await client.send(post("/v1/chat/completions", body(kind, number), connection="close"))
        status, _ = await client.head()
        await client.until_closed()
        return status


@pytest.mark.parametrize(("kind", "status"), [("whole", 200), ("streamed", 200), ("too-long", 400)])
async def test_nothing_of_a_long_body_outlives_its_request(kind: str, status: int) -> None:
    backend = ScriptedBackend()
    async with running(backend) as address:
        assert await ask(address, kind, 0) == status  # loads the model, fills what is kept once
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(1, NUM_REQUESTS + 1):
                assert await ask(address, kind, number) == status
            growth = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert growth < BODY_CHARS, f"{growth} bytes are kept after {NUM_REQUESTS} bodies of {BODY_CHARS}"
