"""Completions over HTTP, and the answers in a form that can be compared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import httpx
import pytest

MODEL = "demo"
CONTEXT_LENGTH = 2048
FIRST_TOKEN, LAST_TOKEN = 10, 1500
"""Token ids of the demo model that stand for text."""

Body = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``tokens``: as text; empty unless log-probabilities were asked for."""

    text: str
    num_tokens: int
    finish_reason: str
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()

    def assert_equals(self, other: Answer) -> None:
        """Same tokens, and log-probabilities within 1e-4."""
        assert (self.text, self.tokens) == (other.text, other.tokens)
        assert (self.num_tokens, self.finish_reason) == (other.num_tokens, other.finish_reason)
        assert self.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def random_tokens(rng: Random, num_tokens: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(num_tokens)]


def completion(prompt: list[int], max_tokens: int, **more: object) -> Body:
    """A request for exactly ``max_tokens`` tokens, greedy unless ``more`` says otherwise."""
    body: Body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    return {**body, "temperature": 0, **more}


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=90, limits=limits) as client:
        yield client


async def complete(client: httpx.AsyncClient, body: Body) -> Answer:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    document = response.json()
    (choice,) = document["choices"]
    logprobs = choice["logprobs"] or {"tokens": (), "token_logprobs": ()}
    return Answer(
        text=choice["text"],
        num_tokens=document["usage"]["completion_tokens"],
        finish_reason=choice["finish_reason"],
        tokens=tuple(logprobs["tokens"]),
        logprobs=tuple(logprobs["token_logprobs"]),
    )


async def complete_all(url: str, bodies: Sequence[Body], *, num_at_once: int = 8) -> list[Answer]:
    """The answers, in the order of ``bodies``."""
    turns = asyncio.Semaphore(num_at_once)

    async def one(client: httpx.AsyncClient, body: Body) -> Answer:
        async with turns:
            return await complete(client, body)

    async with client_of(url) as client, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(client, body)) for body in bodies]
    return [task.result() for task in running]


async def stream_completion(
    client: httpx.AsyncClient, body: Body, on_chunk: Callable[[int], None] = lambda num_chunks: None
) -> Answer:
    """As ``complete``, from a stream; ``on_chunk`` is told the number of chunks after each."""
    text, reason, usage, num_chunks, is_done = "", None, None, 0, False
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line:
                continue
            assert not is_done, f"after [DONE]: {line}"
            if line == "data: [DONE]":
                is_done = True
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            usage = chunk["usage"] or usage
            for choice in chunk["choices"]:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
                num_chunks += 1
                on_chunk(num_chunks)
    assert is_done
    assert usage is not None
    assert reason is not None
    return Answer(text=text, num_tokens=usage["completion_tokens"], finish_reason=reason)
