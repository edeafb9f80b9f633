"""What the client gets of several legs: each token once, usage and timing with the last one."""

from __future__ import annotations

from dynamo_sdk.flow.answer import Answer
from dynamo_sdk.types import FinishReason, GenerateChunk, LegTiming, TokenLogprobs, Usage


def test_only_the_last_chunk_says_what_was_used_over_all_legs() -> None:
    answer = Answer(num_prompt_tokens=10)
    first = GenerateChunk(token_ids=(1,), usage=Usage(10, 1, 8), timing=LegTiming(transfer_bytes=3))
    answer.add_timing(first)
    assert answer.add(first) == GenerateChunk(token_ids=(1,))
    assert answer.add(GenerateChunk()) is None
    last = GenerateChunk(
        token_ids=(2, 3),
        finish_reason=FinishReason.LENGTH,
        usage=Usage(11, 2, 11),
        timing=LegTiming(transfer_bytes=4),
    )
    answer.add_timing(last)
    shown = answer.add(last)
    assert shown is not None
    assert shown.usage == Usage(10, 3, 8), "cached is what the leg that read the prompt first had"
    assert shown.timing is not None
    assert shown.timing.transfer_bytes == 7
    assert answer.token_ids == [1, 2, 3]


def test_the_logprob_of_a_token_that_both_legs_say_is_kept_until_they_start_again() -> None:
    logprobs = (TokenLogprobs(logprob=-0.5),)
    for is_forgotten in (False, True):
        answer = Answer(num_prompt_tokens=10)
        answer.set_aside(GenerateChunk(token_ids=(7,), logprobs=logprobs))
        if is_forgotten:
            answer.forget_set_aside()
        shown = answer.add(GenerateChunk(token_ids=(7,)))
        assert shown is not None
        assert shown.logprobs == (None if is_forgotten else logprobs)
        assert answer.token_ids == [7]
