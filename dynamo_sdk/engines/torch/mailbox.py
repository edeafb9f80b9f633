"""``Mailbox``: one request's tokens, from the engine's loop to the generator that yields them."""

from __future__ import annotations

import asyncio

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    LegTiming,
    TokenLogprobs,
    Usage,
    unpack_tokens,
)

from .sampler import SamplingRow


class Mailbox:
    """Filled by ``put`` and ``fail``, which never wait; emptied by ``take``, which merges whatever has come
    since the last chunk. ``prompt`` and ``output`` are the request's tokens so far, for the sampler;
    ``output`` includes what earlier legs generated.

    Times are seconds of the engine's clock.
    """

    __slots__ = (
        "_error",
        "_finish_reason",
        "_first_token_s",
        "_last_token_s",
        "_logprobs",
        "_num_cached_tokens",
        "_ready",
        "_scheduled_s",
        "_token_ids",
        "_wants_logprobs",
        "arrival_s",
        "is_delivered",
        "output",
        "request",
        "sampling",
    )

    def __init__(self, request: GenerateRequest, *, arrival_s: float, eos_token_ids: tuple[int, ...]) -> None:
        params = request.sampling
        self.request = request
        self.arrival_s = arrival_s
        self.output = unpack_tokens(request.generated)
        self.sampling = SamplingRow(
            params=params,
            prompt=unpack_tokens(request.prompt),
            output=self.output,
            end_ids=params.stop_token_ids + (() if params.ignore_eos else eos_token_ids),
        )
        self.is_delivered = False  # the last chunk has been taken
        self._wants_logprobs = params.logprobs is not None
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish_reason: FinishReason | None = None
        self._num_cached_tokens = 0
        self._error: DynamoError | None = None
        self._ready = asyncio.Event()
        self._scheduled_s = self._first_token_s = self._last_token_s = 0.0

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._finish_reason

    def mark_scheduled(self, now_s: float) -> None:
        """The request is part of a step that starts now. Only the first call counts."""
        if not self._scheduled_s:
            self._scheduled_s = now_s

    def put(
        self,
        token_id: int,
        logprobs: TokenLogprobs | None,
        finish_reason: FinishReason | None,
        *,
        num_cached_tokens: int,
        now_s: float,
    ) -> None:
        self.output.append(token_id)
        self._token_ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._finish_reason = finish_reason
        self._num_cached_tokens = num_cached_tokens
        self._first_token_s = self._first_token_s or now_s
        self._last_token_s = now_s
        self._ready.set()

    def fail(self, error: DynamoError) -> None:
        self._error = error
        self._ready.set()

    async def take(self) -> GenerateChunk:
        """All tokens since the last call, waiting for the first. Raises what ``fail`` was given."""
        await self._ready.wait()
        self._ready.clear()
        if self._error is not None:
            raise self._error
        token_ids, self._token_ids = self._token_ids, []
        logprobs, self._logprobs = self._logprobs, []
        chunk_logprobs = tuple(logprobs) if self._wants_logprobs else None
        if self._finish_reason is None:
            return GenerateChunk(token_ids=tuple(token_ids), logprobs=chunk_logprobs)
        self.is_delivered = True
        return GenerateChunk(
            token_ids=tuple(token_ids),
            logprobs=chunk_logprobs,
            finish_reason=self._finish_reason,
            usage=Usage(
                num_prompt_tokens=self.request.num_prompt_tokens,
                num_output_tokens=len(self.output) - self.request.num_generated_tokens,
                num_cached_tokens=self._num_cached_tokens,
            ),
            timing=LegTiming(
                queue_s=self._scheduled_s - self.arrival_s,
                prefill_s=self._first_token_s - self._scheduled_s,
                decode_s=self._last_token_s - self._first_token_s,
            ),
        )
