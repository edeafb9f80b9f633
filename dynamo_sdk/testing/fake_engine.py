"""``FakeEngine``: an engine that does what a test tells it to."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines.loras import LoraTable
from dynamo_sdk.errors import EngineFailed, InvalidRequest
from dynamo_sdk.interfaces import AdaptsLora, Engine, EngineFacts
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    LoadSnapshot,
    LoraSpec,
    Role,
    TokenLogprobs,
    Usage,
)

Step = int | Exception | anyio.Event
"""A token to emit, an error to raise, or an event to wait for."""

Script = Iterable[Step] | Callable[[GenerateRequest], Iterable[Step]]


class FakeEngine(Engine, AdaptsLora):
    """Plays ``script`` for each request: its tokens in order, over and over when the request must not stop
    at their end; with an adapter, from its end. Keeps every promise of ``Engine``, except where the script
    breaks one. Any folder is an adapter.

    ``requests``: all that were asked, in order. ``num_open``: streams that run now. ``num_aborted``: those
    that were closed before their last chunk. ``start_error``: what ``start`` raises.
    ``ticket``: what comes with ``HANDOVER``.
    """

    def __init__(
        self,
        script: Script = (1, 2, 3),
        *,
        facts: EngineFacts | None = None,
        start_error: Exception | None = None,
        ticket: KVTransferParams | None = None,
    ) -> None:
        self._script = script
        self._facts = facts or EngineFacts(context_length=1024)
        self._start_error = start_error
        self._ticket = ticket
        self._adapters = LoraTable[None]()
        self._is_running = False
        self._none_open = anyio.Event()
        self.requests: list[GenerateRequest] = []
        self.num_open = 0
        self.num_aborted = 0
        self.num_closes = 0

    async def start(self) -> EngineFacts:
        await checkpoint()
        if self._start_error is not None:
            raise self._start_error
        self._is_running = True
        return self._facts

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.requests.append(request)
        self._check(request)
        with self._adapters.using(request.lora):
            self.num_open += 1
            is_complete = False
            try:
                async with aclosing(self._play(request)) as chunks:
                    async for chunk in chunks:
                        is_complete = chunk.finish_reason is not None
                        yield chunk
            finally:
                self.num_open -= 1
                self.num_aborted += not is_complete
                if not self.num_open:
                    self._none_open.set()
                    self._none_open = anyio.Event()

    async def load_lora(self, lora: LoraSpec) -> None:
        async def find() -> None:
            if not await anyio.Path(lora.path).is_dir():
                raise InvalidRequest(f"no folder {lora.path!r}", param="lora")

        await self._adapters.load(lora, find)

    async def unload_lora(self, name: str) -> None:
        async def forget(_: None) -> None:
            await checkpoint()

        await self._adapters.unload(name, forget)

    def loras(self) -> tuple[LoraSpec, ...]:
        return self._adapters.specs()

    async def drain(self) -> None:
        while self.num_open:
            await self._none_open.wait()
        await checkpoint()

    async def close(self) -> None:
        self.num_closes += 1
        self._is_running = False
        await checkpoint()

    def load(self) -> LoadSnapshot:
        return LoadSnapshot(at_s=time.monotonic(), num_running=self.num_open)

    def _check(self, request: GenerateRequest) -> None:
        if not self._is_running:
            raise EngineFailed("the fake engine is not running")
        if not request.prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if request.num_prompt_tokens >= self._facts.context_length:
            raise InvalidRequest(
                f"the prompt has {request.num_prompt_tokens} tokens; "
                f"this model takes at most {self._facts.context_length - 1}",
                param="prompt",
            )

    async def _play(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        steps = list(self._script(request) if callable(self._script) else self._script)
        if request.lora is not None:
            steps.reverse()
        num_tokens = sum(isinstance(step, int) for step in steps)
        position = 0
        while True:
            for step in steps:
                await checkpoint()
                if not self._is_running:
                    raise EngineFailed("the fake engine was closed")
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, anyio.Event):
                    await step.wait()
                    continue
                position += 1
                if position <= request.num_generated_tokens:
                    continue
                chunk = self._chunk(request, step, position, is_script_end=position % num_tokens == 0)
                yield chunk
                if chunk.finish_reason is not None:
                    return
                if request.role is Role.PREFILL:
                    yield self._handover(request, position)
                    return
            if not num_tokens:
                raise EngineFailed("the script of the fake engine has no token")

    def _chunk(
        self, request: GenerateRequest, token_id: int, position: int, *, is_script_end: bool
    ) -> GenerateChunk:
        sampling = request.sampling
        is_stop = token_id in sampling.stop_token_ids or (is_script_end and not sampling.ignore_eos)
        reason = None
        if is_stop and position >= sampling.min_tokens:
            reason = FinishReason.STOP
        elif (
            position >= sampling.max_tokens
            or request.num_prompt_tokens + position >= self._facts.context_length
        ):
            reason = FinishReason.LENGTH
        logprobs = None
        if sampling.logprobs is not None:
            logprobs = (TokenLogprobs(0.0, ((token_id, 0.0),) if sampling.logprobs else ()),)
        return GenerateChunk(
            token_ids=(token_id,),
            logprobs=logprobs,
            finish_reason=reason,
            usage=_usage(request, position) if reason else None,
        )

    def _handover(self, request: GenerateRequest, position: int) -> GenerateChunk:
        return GenerateChunk(
            finish_reason=FinishReason.HANDOVER, usage=_usage(request, position), kv_transfer=self._ticket
        )


def _usage(request: GenerateRequest, position: int) -> Usage:
    return Usage(request.num_prompt_tokens, position - request.num_generated_tokens)
