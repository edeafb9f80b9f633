"""``Mailbox``: one request's tokens, from an engine's loop to whoever passes them on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    LegTiming,
    TokenLogprobs,
    Usage,
)


class Mailbox:
    """Filled by ``put`` and ``fail``, which never wait; emptied by one consumer's ``take`` or ``next``, which
    merge whatever has come since the last chunk. ``is_over``: the last chunk has been taken.

    Times are seconds of the engine's clock. ``ticket`` goes out with a ``HANDOVER``.
    """

    __slots__ = (
        "_error",
        "_first_token_s",
        "_last_token_s",
        "_logprobs",
        "_num_cached_tokens",
        "_num_tokens",
        "_on_ready",
        "_scheduled_s",
        "_token_ids",
        "_transfer_bytes",
        "_transfer_s",
        "arrival_s",
        "finish_reason",
        "is_over",
        "request",
        "ticket",
        "wants_logprobs",
    )

    def __init__(
        self, request: GenerateRequest, *, arrival_s: float, ticket: KVTransferParams | None = None
    ) -> None:
        self.request = request
        self.arrival_s = arrival_s
        self.ticket = ticket
        self.wants_logprobs = request.sampling.logprobs is not None
        self.finish_reason: FinishReason | None = None  # set with the last token
        self.is_over = False
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._num_tokens = 0
        self._num_cached_tokens = 0
        self._error: DynamoError | None = None
        self._on_ready: Callable[[], None] | None = None
        self._scheduled_s: float | None = None
        self._first_token_s = self._last_token_s = 0.0
        self._transfer_s, self._transfer_bytes = 0.0, 0

    def mark_scheduled(self, now_s: float, *, transfer_s: float = 0.0, transfer_bytes: int = 0) -> None:
        """The request is part of a step that starts now. Only the first call counts.

        ``transfer_s`` of its wait so far was for ``transfer_bytes`` of KV to come from elsewhere.
        """
        if self._scheduled_s is None:
            self._scheduled_s = now_s
            self._transfer_s, self._transfer_bytes = transfer_s, transfer_bytes

    def put(
        self,
        token_id: int,
        logprobs: TokenLogprobs | None,
        finish_reason: FinishReason | None,
        *,
        num_cached_tokens: int,
        now_s: float,
    ) -> None:
        """``logprobs`` for each token, or for none, as ``wants_logprobs`` says."""
        self._token_ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if not self._num_tokens:
            self._first_token_s = now_s
        self._num_tokens += 1
        self._last_token_s = now_s
        self._num_cached_tokens = num_cached_tokens
        self.finish_reason = finish_reason
        if self._on_ready is not None:
            self._on_ready()

    def fail(self, error: DynamoError) -> None:
        """Tokens that were not taken yet are lost with it."""
        self._error = error
        if self._on_ready is not None:
            self._on_ready()

    def listen(self, on_ready: Callable[[], None]) -> None:
        """Call ``on_ready`` at each ``put`` and ``fail`` from now on."""
        self._on_ready = on_ready

    async def next(self) -> GenerateChunk:
        """``take``, waiting for the first token."""
        while (chunk := self.take()) is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._on_ready = lambda waiter=waiter: None if waiter.done() else waiter.set_result(None)
            try:
                await waiter
            finally:
                self._on_ready = None
        return chunk

    def take(self) -> GenerateChunk | None:
        """All tokens since the last call; None = there are none. Raises what ``fail`` was given."""
        if self._error is not None:
            raise self._error
        if not self._token_ids:
            return None
        token_ids, self._token_ids = tuple(self._token_ids), []
        logprobs: tuple[TokenLogprobs, ...] | None = None
        if self.wants_logprobs:
            logprobs, self._logprobs = tuple(self._logprobs), []
        if self.finish_reason is None:
            return GenerateChunk(token_ids, logprobs)
        self.is_over = True
        return GenerateChunk(
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            usage=Usage(
                num_prompt_tokens=self.request.num_prompt_tokens,
                num_output_tokens=self._num_tokens,
                num_cached_tokens=self._num_cached_tokens,
            ),
            kv_transfer=self.ticket if self.finish_reason is FinishReason.HANDOVER else None,
            timing=self._timing(),
        )

    def _timing(self) -> LegTiming:
        scheduled_s = self.arrival_s if self._scheduled_s is None else self._scheduled_s
        return LegTiming(
            queue_s=scheduled_s - self.arrival_s - self._transfer_s,
            prefill_s=self._first_token_s - scheduled_s,
            decode_s=self._last_token_s - self._first_token_s,
            transfer_s=self._transfer_s,
            transfer_bytes=self._transfer_bytes,
        )
