"""Whatever a client sends gets a 4xx in OpenAI's shape: the field, its value, what is allowed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo_sdk.services.openai import OpenAIApp

from .asking import Answer, call, chat, completion
from .fakes import CONTEXT_LENGTH, ScriptedBackend, ids_of

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

BAD_FIELDS: list[tuple[str, dict[str, Any], str, str]] = [
    # path, fields, param, a part of the message
    (CHAT, chat(temperature=2.5), "temperature", "2.5; allowed are 0 to 2"),
    (CHAT, chat(temperature=-1), "temperature", "allowed are 0 to 2"),
    (CHAT, chat(temperature="hot"), "temperature", 'temperature is "hot": expected float'),
    (CHAT, chat(top_p=1.1), "top_p", "allowed are 0 to 1"),
    (CHAT, chat(min_p=-0.1), "min_p", "allowed are 0 to 1"),
    (CHAT, chat(top_k=-2), "top_k", "allowed are -1 to"),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty", "more than 0 to 10"),
    (CHAT, chat(presence_penalty=2.1), "presence_penalty", "-2 to 2"),
    (CHAT, chat(frequency_penalty=-3), "frequency_penalty", "-2 to 2"),
    (CHAT, chat(n=0), "n", "1 to 128"),
    (CHAT, chat(n=10**30), "n", "1 to 128"),
    (CHAT, chat(n=True), "n", "got bool"),
    (CHAT, chat(n=1.5), "n", "got float"),
    (CHAT, chat(seed=2**63), "seed", "allowed are"),
    (CHAT, chat(max_tokens=0), "max_tokens", "1 or more"),
    (CHAT, chat(max_completion_tokens=-5), "max_completion_tokens", "1 or more"),
    (CHAT, chat(min_tokens=9, max_tokens=8), "min_tokens", "0 to 8"),
    (CHAT, chat(stop=["a"] * 5), "stop", "at most 4"),
    (CHAT, chat(stop=""), "stop", "1 to 1000"),
    (CHAT, chat(stop=[1]), "stop[0]", "expected str"),
    (CHAT, chat(stop_token_ids=[10**6]), "stop_token_ids", "1000000; allowed are 0 to"),
    (CHAT, chat(logit_bias={"a": 1}), "logit_bias", "'a'; allowed are token ids"),
    (CHAT, chat(logit_bias={"1": 101}), "logit_bias[1]", "-100 to 100"),
    (CHAT, chat(top_logprobs=2), "top_logprobs", "only with logprobs: true"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs", "0 to 20"),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options", "only with stream"),
    (CHAT, chat(dynamo={"prioritty": 1}), "dynamo", "prioritty"),
    (CHAT, chat(tools=[{"type": "function"}]), "tools", "not supported yet"),
    (CHAT, chat(tool_choice="required"), "tool_choice", "'none' or 'auto'"),
    (CHAT, chat(functions=[{"name": "f"}]), "functions", "not supported yet"),
    (CHAT, chat(response_format={"type": "json_object"}), "response_format", "'json_object', which is not"),
    (CHAT, chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs", "'messages'"),
    (CHAT, chat(best_of=3), "best_of", "not supported yet"),
    (CHAT, {"model": "demo"}, "messages", "messages is missing"),
    (CHAT, {"messages": []}, "model", "model is missing"),
    (CHAT, {"model": 5, "messages": []}, "model", "model is 5: expected str"),
    (CHAT, {**chat(), "messages": []}, "messages", "at least one message"),
    (CHAT, {**chat(), "messages": "hi"}, "messages", "expected array"),
    (CHAT, {**chat(), "messages": [{"role": "user", "content": ""}] * 16_385}, "messages", "at most 16384"),
    (CHAT, {**chat(), "messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    (CHAT, {**chat(), "messages": [{"role": "alien", "content": "x"}]}, "messages[0].role", '"alien"'),
    (CHAT, {**chat(), "messages": [{"role": "user"}]}, "messages[0].content", "is null"),
    (CHAT, {**chat(), "messages": [{"role": "user", "content": 7}]}, "messages[0].content", "is 7"),
    (CHAT, {**chat(), "messages": [{"role": "tool", "content": "x"}]}, "messages", "knows no role tool"),
    (
        CHAT,
        {**chat(), "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "'image_url', which is not supported yet",
    ),
    (COMPLETIONS, completion([]), "prompt", "prompt is []"),
    (COMPLETIONS, completion([[]]), "prompt", "no tokens"),
    (COMPLETIONS, completion([1, "a"]), "prompt", "mixes token ids"),
    (COMPLETIONS, completion([10**9]), "prompt", "1000000000; allowed are 0 to"),
    (COMPLETIONS, completion([-1]), "prompt", "-1; allowed are 0 to"),
    (COMPLETIONS, completion([1.5]), "prompt[0]", "got float"),
    (COMPLETIONS, completion(["a"] * 1025), "prompt", "at most 1024"),
    (COMPLETIONS, completion(["a"] * 100, n=100), "n", "10000 choices"),
    (COMPLETIONS, completion(logprobs=21), "logprobs", "0 to 20"),
    (COMPLETIONS, completion(logprobs=1, echo=True), "logprobs", "not supported yet"),
    (COMPLETIONS, completion(suffix="x"), "suffix", "not supported yet"),
    (EMBEDDINGS, {"model": "demo", "input": ""[:0] or []}, "input", "input is []"),
    (EMBEDDINGS, {"model": "demo", "input": "a", "encoding_format": "hex"}, "encoding_format", '"hex"'),
    (EMBEDDINGS, {"model": "demo", "input": "a", "dimensions": 7}, "dimensions", "7; allowed is 3"),
    (EMBEDDINGS, {"model": "demo", "input": {"a": 1}}, "input", "got object"),
]


@pytest.mark.parametrize(("path", "body", "param", "message"), BAD_FIELDS)
async def test_a_bad_field_is_named(path: str, body: dict[str, Any], param: str, message: str) -> None:
    backend = ScriptedBackend()
    answer = await call(backend, path, body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert message in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"
    assert not backend.requests


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "expected object"),
        (b"null", "got null"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b'{"model": "demo", "temperature": NaN}', "not valid JSON"),
        (b'{"model": "demo", "temperature": 1e999}', "out of range"),
        (b'{"model": "demo", "x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"model": "demo", "n": ' + b"9" * 10_000 + b"}", "n"),
        (b'{"model": "demo", "messages": [{"role": "user", "content": "x"}]} trailing', "not valid JSON"),
    ],
)
async def test_a_bad_body_is_explained(body: bytes, message: str) -> None:
    answer = await call(ScriptedBackend(), CHAT, body)
    assert answer.status == 400
    assert message.lower() in answer.error["message"].lower()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(" block" * CONTEXT_LENGTH)),
        (CHAT, chat("x" * 10**6)),
        (CHAT, chat(max_tokens=CONTEXT_LENGTH)),
        (CHAT, chat(max_tokens=10**40)),
        (COMPLETIONS, completion(ids_of(" block") * CONTEXT_LENGTH)),
        (COMPLETIONS, completion(["a", " block" * CONTEXT_LENGTH])),
        (EMBEDDINGS, {"model": "demo", "input": " block" * (CONTEXT_LENGTH + 1)}),
    ],
)
async def test_context_overflow_has_openais_code(path: str, body: dict[str, Any]) -> None:
    answer = await call(ScriptedBackend(), path, body)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert f"context of {CONTEXT_LENGTH} tokens" in answer.error["message"]


async def test_an_unknown_model_is_404_with_the_known_ones() -> None:
    answer = await call(ScriptedBackend(), CHAT, {**chat(), "model": "gpt-9"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["message"] == "model 'gpt-9' does not exist; there is 'demo'"


async def test_unknown_keys_and_nulls_are_ignored() -> None:
    nulls = dict.fromkeys(["n", "stop", "seed", "tools", "temperature", "max_tokens", "logit_bias", "user"])
    body = chat(**nulls, unheard_of={"a": [1]}, store=True, metadata={"k": "v"}, service_tier="auto")
    assert (await call(ScriptedBackend(), CHAT, body)).status == 200


async def test_unknown_routes_and_methods() -> None:
    answer = await call(ScriptedBackend(), "/v1/nope", {})
    assert answer.status == 404
    assert "/v1/chat/completions" in answer.error["message"]
    answer = await call(ScriptedBackend(), CHAT, method="GET")
    assert (answer.status, answer.error["message"]) == (405, f"{CHAT} does not take GET; allowed is POST")


async def test_a_compressed_body_is_refused() -> None:
    answer = await call(ScriptedBackend(), CHAT, b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert answer.status == 415


# --- fuzz: the fields OpenAI has, with values of any shape

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.integers(-2, 130),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(
        ["demo", "user", "system", "assistant", "tool", "text", "base64", "auto", "none", "🙂", "\x00"]
    ),
)
_json = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "include_usage", "7", "x"]), inner
        ),
    ),
    max_leaves=8,
)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer"]), "content": _json},
    optional={"name": _json, "tool_calls": _json, "tool_call_id": _json},
)
_FIELDS = [
    "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    "echo", "suffix", "best_of", "user", "tools", "tool_choice", "response_format", "top_k", "min_p",
    "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "dynamo", "dimensions",
    "encoding_format", "chat_template_kwargs", "return_token_ids", "skip_special_tokens",
    "prompt_logprobs",
]  # fmt: skip
_extra = st.dictionaries(st.sampled_from(_FIELDS), _json, max_size=5)
_bodies = st.one_of(
    st.builds(
        lambda m, e: {"model": "demo", "messages": m, **e}, st.lists(_message, max_size=3) | _json, _extra
    ),
    st.builds(lambda p, e: {"model": "demo", "prompt": p, "input": p, **e}, _json, _extra),
    _json,
)


FUZZED = ScriptedBackend()
FUZZED_APP = OpenAIApp(FUZZED)


def check(answer: Answer) -> None:
    assert 200 <= answer.status < 500, answer.body
    if answer.status >= 400:
        assert answer.error["message"]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]), body=_bodies)
async def test_any_json_gets_an_answer_below_500(path: str, body: object) -> None:
    async with asyncio.timeout(20):
        check(await call(FUZZED_APP, path, json.dumps(body).encode()))
    assert FUZZED.num_open == 0


@settings(max_examples=200)
@given(
    path=st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]),
    body=st.binary(max_size=60)
    | st.builds(bytes.__add__, st.just(b'{"model":"demo","'), st.binary(max_size=40)),
)
async def test_any_bytes_get_a_400(path: str, body: bytes) -> None:
    answer = await call(FUZZED_APP, path, body)
    assert answer.status == 400
    assert answer.error["message"]
