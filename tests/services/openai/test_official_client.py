"""The official client against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from dynamo_sdk.errors import EngineFailed, Overloaded, Unavailable
from dynamo_sdk.types import GenerateRequest, unpack_tokens

from .fakes import CONTEXT_LENGTH, END_ID, ScriptedBackend, ids_of, running

pytestmark = pytest.mark.anyio

TEXT = "A KV block is a fixed run of tokens' KV."
HI: list[Any] = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def client_of(backend: ScriptedBackend) -> AsyncIterator[AsyncOpenAI]:
    async with running(backend) as (host, port):
        async with AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0) as client:
            yield client


# --- chat


async def test_chat() -> None:
    backend = ScriptedBackend(num_cached=3)
    async with client_of(backend) as client:
        answer = await client.chat.completions.create(model="demo", messages=HI)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(ids_of(TEXT)) + 1
    assert answer.usage.prompt_tokens == len(unpack_tokens(backend.requests[0].prompt))
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    (request,) = backend.requests
    assert request.sampling.max_tokens == CONTEXT_LENGTH - answer.usage.prompt_tokens
    assert (request.sampling.temperature, request.model, request.lora) == (1.0, "demo", None)


async def test_chat_streamed() -> None:
    async with client_of(ScriptedBackend()) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *spoken, last = chunks
    assert [chunk.choices[0].delta.role for chunk in spoken] == ["assistant"] + [None] * (len(spoken) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in spoken] == [None] * (len(spoken) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in spoken)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_several_choices_have_seeds_of_their_own() -> None:
    backend = ScriptedBackend(per_choice=lambda request: [*ids_of(f" {request.sampling.seed}"), END_ID])
    async with client_of(backend) as client:
        answer = await client.chat.completions.create(model="demo", messages=HI, n=3, seed=40)
        assert [choice.message.content for choice in answer.choices] == [" 40", " 41", " 42"]
        stream = await client.chat.completions.create(model="demo", messages=HI, n=3, seed=40, stream=True)
        texts = ["", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [" 40", " 41", " 42"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(unpack_tokens(backend.requests[0].prompt)), "counted once"
    assert len({request.request_id for request in backend.requests}) == 6


async def test_a_seed_is_drawn_where_none_is_given() -> None:
    backend = ScriptedBackend()
    async with client_of(backend) as client:
        for _ in range(2):
            await client.chat.completions.create(model="demo", messages=HI)
    first, second = (request.sampling.seed for request in backend.requests)
    assert first != second


async def test_a_stop_string_ends_the_engines_work() -> None:
    backend = ScriptedBackend()
    async with client_of(backend) as client:
        answer = await client.chat.completions.create(model="demo", messages=HI, stop=["ck is", "never"])
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("A KV blo", "stop")
        assert backend.num_tokens_sent < len(ids_of(TEXT))
        stream = await client.chat.completions.create(model="demo", messages=HI, stop="ck is", stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "A KV blo"
    assert backend.num_open == 0


async def test_chat_logprobs() -> None:
    async with client_of(ScriptedBackend()) as client:
        answer = await client.chat.completions.create(
            model="demo", messages=HI, logprobs=True, top_logprobs=2, max_tokens=4
        )
        stream = await client.chat.completions.create(
            model="demo", messages=HI, logprobs=True, top_logprobs=2, max_tokens=4, stream=True
        )
        streamed = [
            entry
            async for chunk in stream
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content or ()
        ]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content
    for entry in logprobs.content:
        assert bytes(entry.bytes or ()).decode() == entry.token
        assert [top.logprob for top in entry.top_logprobs] == [-0.5, -1.5]
    assert streamed == logprobs.content


async def test_fields_reach_the_engine() -> None:
    backend = ScriptedBackend()
    async with client_of(backend) as client:
        await client.chat.completions.create(
            model="demo",
            messages=HI,
            temperature=0.5,
            top_p=0.9,
            presence_penalty=0.25,
            frequency_penalty=-0.5,
            logit_bias={"7": -3},
            max_completion_tokens=9,
            seed=-1,
            extra_body={
                "top_k": 40,
                "min_p": 0.05,
                "repetition_penalty": 1.1,
                "min_tokens": 2,
                "stop_token_ids": [5],
                "ignore_eos": True,
                "dynamo": {"cache_salt": "tenant", "priority": 3},
            },
        )
    (request,) = backend.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.05)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, -0.5)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, {7: -3.0})
    assert (sampling.max_tokens, sampling.min_tokens, sampling.seed) == (9, 2, 2**63 - 1)
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((5,), True)
    assert (request.cache_salt, request.priority) == ("tenant", 3)


async def test_text_parts_of_a_conversation() -> None:
    backend = ScriptedBackend()
    parts: list[Any] = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    async with client_of(backend) as client:
        for content in (parts, "one two"):
            await client.chat.completions.create(
                model="demo",
                messages=[
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": "ok"},
                    {"role": "user", "content": "go"},
                ],
            )
    assert backend.requests[0].prompt == backend.requests[1].prompt


# --- completions


def echo_prompt(request: GenerateRequest) -> list[int]:
    return [*unpack_tokens(request.prompt)[-2:], END_ID]


@pytest.mark.parametrize("stream", [False, True])
async def test_every_shape_of_prompt(stream: bool) -> None:
    ids = ids_of("KV block")
    async with client_of(ScriptedBackend(per_choice=echo_prompt)) as client:
        for prompt in ("KV block", ["KV block"], ids, [ids]):
            assert await complete(client, stream, prompt=prompt) == ["KV block"]
        assert await complete(client, stream, prompt=["a KV block", "KV"], n=2, echo=True) == [
            "a KV block KV block",
            "a KV block KV block",
            "KVKV",
            "KVKV",
        ]


async def complete(client: AsyncOpenAI, stream: bool, **fields: Any) -> list[str]:
    if not stream:
        answer = await client.completions.create(model="demo", **fields)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]
    texts: dict[int, str] = {}
    async for chunk in await client.completions.create(model="demo", stream=True, **fields):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    return [texts[index] for index in sorted(texts)]


async def test_completion_logprobs() -> None:
    async with client_of(ScriptedBackend()) as client:
        answer = await client.completions.create(model="demo", prompt="x", logprobs=2, max_tokens=5)
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    scores = choice.logprobs
    assert scores is not None
    assert "".join(scores.tokens or ()) == choice.text
    assert scores.token_logprobs == [-0.5] * 5
    assert scores.top_logprobs is not None
    assert all(len(top) == 2 for top in scores.top_logprobs)
    assert scores.tokens is not None
    assert scores.text_offset is not None
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)


async def test_token_ids_are_returned_on_request() -> None:
    async with client_of(ScriptedBackend()) as client:
        answer = await client.completions.create(
            model="demo", prompt="x", max_tokens=3, extra_body={"return_token_ids": True}
        )
    extra = answer.choices[0].model_extra
    assert extra is not None
    assert extra["token_ids"] == ids_of(TEXT)[:3]
    assert extra["prompt_token_ids"][-1:] == ids_of("x")


# --- embeddings and models


async def test_embeddings() -> None:
    async with client_of(ScriptedBackend()) as client:
        packed = await client.embeddings.create(model="demo", input=["a", "KV block"])
        plain = await client.embeddings.create(
            model="demo", input=["a", "KV block"], encoding_format="float", dimensions=3
        )
        ids = await client.embeddings.create(model="demo", input=[5, 6, 7])
    assert [entry.embedding for entry in packed.data] == [entry.embedding for entry in plain.data]
    assert [entry.index for entry in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens == sum(int(entry.embedding[1]) for entry in packed.data)
    assert ids.data[0].embedding == [0.5, 3.0, -0.25]


async def test_models() -> None:
    async with client_of(ScriptedBackend()) as client:
        listed = [model.id async for model in client.models.list()]
        card = await client.models.retrieve("demo")
        with pytest.raises(openai.NotFoundError, match="there is 'demo'"):
            await client.models.retrieve("other/model")
    assert (listed, card.id, card.object) == (["demo"], "demo", "model")


# --- errors of the backend


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (Overloaded("all queues are full"), openai.RateLimitError),
        (Unavailable("no decode worker"), openai.InternalServerError),
        (RuntimeError("a bug"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_its_status(
    fail: Exception, expected: type[openai.APIStatusError], stream: bool
) -> None:
    async with client_of(ScriptedBackend(fail=fail)) as client:
        with pytest.raises(expected) as caught:
            await client.chat.completions.create(model="demo", messages=HI, stream=stream)
    status = {Overloaded: 429, Unavailable: 503, RuntimeError: 500}[type(fail)]
    assert caught.value.status_code == status
    assert ("retry-after" in caught.value.response.headers) is (status in (429, 503))
    assert ("a bug" in str(caught.value)) is False


async def test_an_error_in_the_middle_of_a_stream_reaches_the_client() -> None:
    backend = ScriptedBackend(fail=EngineFailed("the worker died"), fail_after=3)
    async with client_of(backend) as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True)
        spoken = [(await anext(stream)).choices[0].delta.content for _ in range(4)]
        with pytest.raises(openai.APIError, match="the worker died"):
            await anext(stream)
    assert spoken == ["", "A", " KV", " block"]
