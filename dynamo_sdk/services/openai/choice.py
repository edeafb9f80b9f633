"""One choice of an answer, from engine chunks to what its client may see; no I/O.

Detokenizes, finds stop strings, and keeps logprobs in step with the text: a token is shown when all of its
text is, so that nothing of a stop string leaks through its logprobs either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from dynamo_sdk.preprocess import Detokenizer, StopStringMatcher
from dynamo_sdk.types import FinishReason, GenerateChunk, TokenLogprobs


class ScoredToken(msgspec.Struct, frozen=True):
    """An emitted token; ``text_offset`` counts the characters of the choice's text before it."""

    token_id: int
    scores: TokenLogprobs
    text_offset: int


class Delta(msgspec.Struct, frozen=True):
    """What one chunk adds. ``finish_reason`` is set in the last one: ``stop`` or ``length``."""

    text: str
    scored: Sequence[ScoredToken] = ()
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None


class ChoiceStream:
    """``end_ids``: tokens that end the text and are not part of it, when the engine stops at them."""

    __slots__ = ("_detokenizer", "_end_ids", "_matcher", "_num_chars", "_num_shown", "_pending", "num_tokens")

    def __init__(
        self, detokenizer: Detokenizer, *, end_ids: frozenset[int], stops: Sequence[str] = ()
    ) -> None:
        self._detokenizer = detokenizer
        self._end_ids = end_ids
        self._matcher = StopStringMatcher(stops) if stops else None
        self._pending: deque[tuple[ScoredToken, int]] = deque()  # with the offset after the token
        self._num_chars = 0
        self._num_shown = 0
        self.num_tokens = 0
        """Tokens generated so far, end tokens included."""

    def push(self, chunk: GenerateChunk) -> Delta:
        token_ids, finish = chunk.token_ids, chunk.finish_reason
        num_text_tokens = len(token_ids)
        if finish is FinishReason.STOP and token_ids and token_ids[-1] in self._end_ids:
            num_text_tokens -= 1
        if self._matcher is None and chunk.logprobs is None:
            self.num_tokens += len(token_ids)
            text = self._detokenizer.push(token_ids[:num_text_tokens])
            if finish is None:
                return Delta(text, (), token_ids)
            return Delta(text + self._detokenizer.finish(), (), token_ids, finish.value)
        return self._push_each(chunk, num_text_tokens)

    def _push_each(self, chunk: GenerateChunk, num_text_tokens: int) -> Delta:
        texts: list[str] = []
        for index, token_id in enumerate(chunk.token_ids):
            self.num_tokens += 1
            if index == num_text_tokens:
                break
            start = self._num_chars
            text = self._detokenizer.push((token_id,))
            self._num_chars += len(text)
            if chunk.logprobs is not None:
                scored = ScoredToken(token_id, chunk.logprobs[index], start)
                self._pending.append((scored, self._num_chars))
            texts.append(self._show(text))
            if self._is_stopped:
                return Delta("".join(texts), self._fully_shown(), chunk.token_ids[: index + 1], "stop")
        if chunk.finish_reason is None:
            return Delta("".join(texts), self._fully_shown(), chunk.token_ids)
        texts.append(self._show(self._detokenizer.finish()))
        if self._is_stopped:
            return Delta("".join(texts), self._fully_shown(), chunk.token_ids, "stop")
        if self._matcher is not None:
            texts.append(self._matcher.finish())
        rest = [scored for scored, _ in self._pending]
        return Delta("".join(texts), rest, chunk.token_ids, chunk.finish_reason.value)

    @property
    def _is_stopped(self) -> bool:
        return self._matcher is not None and self._matcher.hit is not None

    def _show(self, text: str) -> str:
        shown = text if self._matcher is None else self._matcher.push(text)
        self._num_shown += len(shown)
        return shown

    def _fully_shown(self) -> list[ScoredToken]:
        shown: list[ScoredToken] = []
        while self._pending and self._pending[0][1] <= self._num_shown:
            shown.append(self._pending.popleft()[0])
        return shown
