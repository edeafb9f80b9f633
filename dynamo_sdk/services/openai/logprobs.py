"""Logprobs as OpenAI writes them: a list of tokens for chat, parallel arrays for completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo_sdk.preprocess import Tokenizer, printable

from .choice import ScoredToken

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """``text_offset`` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(tokenizer: Tokenizer, scored: Sequence[ScoredToken]) -> list[ChatTokenLogprob]:
    entries: list[ChatTokenLogprob] = []
    for token in scored:
        piece = tokenizer.token_bytes(token.token_id)
        top = [_top(tokenizer, token_id, logprob) for token_id, logprob in token.scores.top]
        entries.append(ChatTokenLogprob(printable(piece), _finite(token.scores.logprob), list(piece), top))
    return entries


def completion_logprobs(
    tokenizer: Tokenizer, scored: Sequence[ScoredToken], *, offset: int
) -> CompletionLogprobs:
    """``offset``: characters that an echoed prompt puts before the choice's own text."""
    return CompletionLogprobs(
        tokens=[printable(tokenizer.token_bytes(token.token_id)) for token in scored],
        token_logprobs=[_finite(token.scores.logprob) for token in scored],
        top_logprobs=[_top_by_text(tokenizer, token) for token in scored],
        text_offset=[offset + token.text_offset for token in scored],
    )


def _top_by_text(tokenizer: Tokenizer, token: ScoredToken) -> dict[str, float]:
    """The most likely tokens, and the emitted one even where it is not among them."""
    emitted = (token.token_id, token.scores.logprob)
    by_text: dict[str, float] = {}
    for token_id, logprob in (*token.scores.top, emitted):
        by_text.setdefault(printable(tokenizer.token_bytes(token_id)), _finite(logprob))
    return by_text


def _top(tokenizer: Tokenizer, token_id: int, logprob: float) -> TopLogprob:
    piece = tokenizer.token_bytes(token_id)
    return TopLogprob(printable(piece), _finite(logprob), list(piece))


def _finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB  # also for not-a-number
