"""Completions over HTTP, and the answers in a form that can be compared."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import pytest

MODEL = "demo"
CONTEXT_LENGTH = 2048
FIRST_TOKEN, LAST_TOKEN = 10, 1500
"""Token ids of the demo model that stand for text."""

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``tokens``: as text. ``margin``: by how much the likeliest token led, at the closest race; where that
    is next to nothing, rounding decides and a greedy answer is not defined."""

    text: str
    num_tokens: int
    finish_reason: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    margin: float

    @property
    def is_decided(self) -> bool:
        return self.margin > 1e-4


def assert_same(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Same tokens, and log-probabilities within 1e-4."""
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.text, answer.tokens) == (other.text, other.tokens)
        assert (answer.num_tokens, answer.finish_reason) == (other.num_tokens, other.finish_reason)
        assert answer.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def random_tokens(rng: Random, num_tokens: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(num_tokens)]


def completion(prompt: list[int], max_tokens: int, **more: object) -> Body:
    """A request for exactly ``max_tokens`` tokens, greedy unless ``more`` says otherwise."""
    body: Body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    return {**body, "temperature": 0, "logprobs": 3, **more}


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=90, limits=limits) as client:
        yield client


@dataclass(slots=True)
class _Reading:
    """Puts an answer together from its choices."""

    text: str = ""
    reason: str | None = None
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margin: float = math.inf

    def see(self, choice: Any) -> None:
        self.text += choice["text"]
        self.reason = choice["finish_reason"] or self.reason
        if logprobs := choice["logprobs"]:
            self.tokens += logprobs["tokens"]
            self.logprobs += logprobs["token_logprobs"]
            for top in logprobs["top_logprobs"]:
                first, second, *_ = [*sorted(top.values(), reverse=True), -math.inf]
                self.margin = min(self.margin, first - second)

    def answer(self, usage: Any) -> Answer:
        assert self.reason is not None
        assert len(self.tokens) == usage["completion_tokens"]
        return Answer(
            text=self.text,
            num_tokens=usage["completion_tokens"],
            finish_reason=self.reason,
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            margin=self.margin,
        )


async def complete(client: httpx.AsyncClient, body: Body) -> Answer:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    document = response.json()
    (choice,) = document["choices"]
    reading = _Reading()
    reading.see(choice)
    return reading.answer(document["usage"])


async def complete_all(url: str, bodies: Sequence[Body], *, num_at_once: int = 8) -> list[Answer]:
    """The answers, in the order of ``bodies``."""
    turns = asyncio.Semaphore(num_at_once)

    async def one(client: httpx.AsyncClient, body: Body) -> Answer:
        async with turns:
            return await complete(client, body)

    async with client_of(url) as client, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(client, body)) for body in bodies]
    return [task.result() for task in running]


async def decided(url: str, bodies: Sequence[Body], num: int) -> tuple[list[Body], list[Answer]]:
    """The first ``num`` of ``bodies`` whose answers rounding does not decide, and the answers."""
    answers = await complete_all(url, bodies)
    found = [(body, answer) for body, answer in zip(bodies, answers, strict=True) if answer.is_decided]
    assert len(found) >= num, f"only {len(found)} of {len(bodies)} answers are decided"
    return [body for body, _ in found[:num]], [answer for _, answer in found[:num]]


async def stream_completion(
    client: httpx.AsyncClient, body: Body, on_chunk: Callable[[int], None] = lambda num_chunks: None
) -> Answer:
    """As ``complete``, from a stream; ``on_chunk`` is told the number of chunks after each."""
    reading, usage, num_chunks, is_done = _Reading(), None, 0, False
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
                reading.see(choice)
                num_chunks += 1
                on_chunk(num_chunks)
    assert is_done
    return reading.answer(usage)
