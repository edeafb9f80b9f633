"""Bodies, lines and errors, without a server."""

from __future__ import annotations

import json

import pytest

from dynamo_sdk.engines.openai.protocol import AnswerReader, error_of, request_body
from dynamo_sdk.errors import (
    DynamoError,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from dynamo_sdk.testing import generate_request
from dynamo_sdk.types import FinishReason, GenerateChunk, SamplingParams, TokenLogprobs, Usage

REQUIRED = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "return_token_ids"}


def line(choice: object | None = None, **others: object) -> str:
    return "data: " + json.dumps({"choices": [] if choice is None else [choice], **others})


def read(*lines: str, logprobs: int | None = None) -> list[GenerateChunk]:
    sampling = SamplingParams(max_tokens=8, temperature=0.0, logprobs=logprobs)
    reader = AnswerReader(generate_request([1, 2], sampling), where="http://there")
    chunks = [chunk for text in lines if (chunk := reader.read(text)) is not None]
    assert reader.is_over
    return chunks


def test_defaults_do_not_travel():
    body = request_body(generate_request([1, 2, 3]), "theirs")
    assert set(body) == REQUIRED
    assert (body["prompt"], body["model"]) == ([1, 2, 3], "theirs")


def test_what_was_generated_is_part_of_the_prompt_and_counts():
    sampling = SamplingParams(max_tokens=8, min_tokens=3, seed=5, top_k=4, logit_bias={7: 1.5}, logprobs=2)
    body = request_body(generate_request([1], sampling, generated=[8, 9]), "m")
    assert body["prompt"] == [1, 8, 9]
    assert (body["max_tokens"], body["min_tokens"], body["seed"]) == (6, 1, 7)
    assert (body["top_k"], body["logit_bias"], body["logprobs"]) == (4, {"7": 1.5}, 2)
    assert body["return_tokens_as_token_ids"] is True


def test_an_answer_is_read_to_its_end():
    chunks = read(
        line({"token_ids": [5, 6], "finish_reason": None}),
        "",
        ": a comment",
        line({"token_ids": [], "finish_reason": None}),
        line({"token_ids": [7], "finish_reason": "length"}),
        line(usage={"prompt_tokens_details": {"cached_tokens": 1}}),
        "data: [DONE]",
    )
    assert chunks == [
        GenerateChunk((5, 6)),
        GenerateChunk((7,), finish_reason=FinishReason.LENGTH, usage=Usage(2, 3, 1)),
    ]


def test_logprobs_name_alternatives_by_id_or_not_at_all():
    by_id = {
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:9": -2.0, "token_id:5": -0.5, "token_id:8": -3.0}],
    }
    by_text = {"token_logprobs": [-0.5], "top_logprobs": [{"cat": -0.5}]}
    for given, expected in ((by_id, ((5, -0.5), (9, -2.0))), (by_text, ())):
        (chunk,) = read(
            line({"token_ids": [5], "finish_reason": "stop", "logprobs": given}), "data: [DONE]", logprobs=2
        )
        assert chunk.logprobs == (TokenLogprobs(-0.5, expected),)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line({"text": "cat", "finish_reason": None})], "return_token_ids"),
        (["data: {"], "no completion"),
        (['data: {"error": {"message": "out of memory"}}'], "out of memory"),
        ([line({"token_ids": [1], "finish_reason": "abort"})], "'abort'"),
        ([line({"token_ids": [1], "finish_reason": None}), "data: [DONE]"], "without a reason"),
    ],
)
def test_what_is_no_answer_is_a_failure(lines: list[str], message: str):
    with pytest.raises(EngineFailed, match=message):
        read(*lines)


def test_a_refusal_after_the_200_is_a_refusal():
    with pytest.raises(InvalidRequest, match="out of vocabulary"):
        read('data: {"error": {"message": "id 9 is out of vocabulary", "code": 400}}')


def test_what_json_cannot_say_is_refused():
    with pytest.raises(InvalidRequest, match="top_p is nan"):
        request_body(generate_request([1], SamplingParams(max_tokens=1, top_p=float("nan"))), "m")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": {"message": "top_p is 3", "param": "top_p"}}', InvalidRequest),
        (422, b"[]", InvalidRequest),
        (404, b"", ModelNotFound),
        (429, b"{}", Overloaded),
        (503, b"busy", Unavailable),
        (500, b'{"error": "broken"}', EngineFailed),
    ],
)
def test_a_refusal_is_the_same_here(status: int, body: bytes, expected: type[DynamoError]):
    error = error_of(status, body, where="http://there")
    assert type(error) is expected
    assert f"http://there answered {status}" in error.message
    if status == 400:
        assert error.param == "top_p"
