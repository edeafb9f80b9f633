from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.engines.runnable import is_handed_over, known_tokens, num_tokens_left
from dynamo_sdk.errors import ContextLengthExceeded, InvalidRequest
from dynamo_sdk.testing import generate_request
from dynamo_sdk.types import GenerateRequest, PackedTokens, Role, SamplingParams


def request(role: Role = Role.AGGREGATED, *, num_generated: int = 0, max_tokens: int = 8) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens)
    return generate_request(range(1, 11), sampling, generated=range(num_generated), role=role)


def test_prompt_and_generated_tokens_are_known():
    assert known_tokens(request(num_generated=2), context_length=100) == [*range(1, 11), 0, 1]


def test_requests_that_can_never_run_are_refused():
    with pytest.raises(InvalidRequest, match="empty"):
        known_tokens(generate_request([]), context_length=100)
    with pytest.raises(ContextLengthExceeded, match="10 tokens"):
        known_tokens(request(), context_length=10)
    with pytest.raises(InvalidRequest, match="already generated"):
        known_tokens(request(num_generated=8), context_length=100)
    broken = msgspec.structs.replace(request(), prompt=PackedTokens(b"123"))
    with pytest.raises(InvalidRequest, match="packed"):
        known_tokens(broken, context_length=100)


def test_tokens_left_end_with_the_request_or_with_the_context():
    assert num_tokens_left(request(num_generated=3), context_length=100) == 5
    assert num_tokens_left(request(num_generated=3), context_length=15) == 2


@pytest.mark.parametrize(
    ("asked", "context_length", "expected"),
    [
        (request(Role.PREFILL), 100, True),
        (request(Role.PREFILL, max_tokens=1), 100, False),
        (request(Role.PREFILL, num_generated=7), 100, False),
        (request(Role.PREFILL), 11, False),
        (request(Role.DECODE), 100, False),
        (request(), 100, False),
    ],
)
def test_what_is_handed_over(asked: GenerateRequest, context_length: int, *, expected: bool):
    assert is_handed_over(asked, context_length=context_length) is expected
