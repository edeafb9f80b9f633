"""Chunks of the two legs, put together: the first token appears once, and its logprob is not lost."""

from __future__ import annotations

import msgspec

from dynamo_sdk.types import GenerateChunk


def joined(first: GenerateChunk | None, second: GenerateChunk) -> GenerateChunk:
    """Two chunks of one leg as one."""
    if first is None:
        return second
    logprobs = second.logprobs if first.logprobs is None else first.logprobs + (second.logprobs or ())
    return msgspec.structs.replace(second, token_ids=first.token_ids + second.token_ids, logprobs=logprobs)


def with_logprobs_of(chunk: GenerateChunk, dropped: GenerateChunk) -> GenerateChunk:
    """The dropped first token's logprob, where the other leg repeats the token without one."""
    is_same_token = chunk.token_ids[:1] == dropped.token_ids[:1]
    if (
        chunk.logprobs is None
        and dropped.logprobs is not None
        and len(chunk.token_ids) == 1
        and is_same_token
    ):
        return msgspec.structs.replace(chunk, logprobs=dropped.logprobs)
    return chunk
