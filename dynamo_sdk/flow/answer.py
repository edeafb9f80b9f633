"""``Answer``: what the client has of one request, over all its legs and attempts."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from dynamo_sdk.types import GenerateChunk, LegTiming, Usage

from .chunks import joined, with_logprobs_of


@dataclass(slots=True)
class Answer:
    """``token_ids``: those that went out."""

    num_prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)
    _timing: LegTiming = field(default_factory=LegTiming)  # of the legs so far, together
    _num_cached_tokens: int | None = None
    _set_aside: GenerateChunk | None = None  # prefill's tokens, where decode's are the ones that count

    def add_timing(self, chunk: GenerateChunk) -> None:
        if chunk.timing is not None:
            self._timing = self._timing.plus(chunk.timing)

    def note_usage(self, chunk: GenerateChunk) -> None:
        """The client's cached tokens are those of the leg that read the prompt first."""
        if chunk.usage is not None and self._num_cached_tokens is None:
            self._num_cached_tokens = min(chunk.usage.num_cached_tokens, self.num_prompt_tokens)

    def set_aside(self, chunk: GenerateChunk) -> GenerateChunk:
        """Tokens that the other leg will say again; returns all that prefill has said, as one chunk."""
        self._set_aside = whole = joined(self._set_aside, chunk)
        return whole

    def forget_set_aside(self) -> None:
        """The legs start again."""
        self._set_aside = None

    def add(self, chunk: GenerateChunk) -> GenerateChunk | None:
        """The chunk as the client should see it; None = there is nothing in it."""
        self.note_usage(chunk)
        if chunk.token_ids and self._set_aside is not None:
            chunk = with_logprobs_of(chunk, self._set_aside)
            self._set_aside = None
        self.token_ids.extend(chunk.token_ids)
        if chunk.finish_reason is None:
            if not chunk.token_ids:
                return None
            if chunk.usage is None and chunk.kv_transfer is None and chunk.timing is None:
                return chunk  # nearly every chunk: nothing to put right
            return msgspec.structs.replace(chunk, usage=None, kv_transfer=None, timing=None)
        usage = Usage(self.num_prompt_tokens, len(self.token_ids), self._num_cached_tokens or 0)
        return msgspec.structs.replace(chunk, usage=usage, kv_transfer=None, timing=self._timing)
