"""The echo engine: token ``p`` of the output is token ``p`` of the prompt; with a LoRA adapter, from its end.

It needs no model, no KV and no GPU, and still keeps every promise of ``Engine``: so a graph, a router or a
frontend can be tried with nothing else installed, and what they do wrong shows at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
from anyio.lowlevel import checkpoint
from pydantic import Field

from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest, Overloaded, TicketUnknown
from dynamo_sdk.interfaces import AdaptsLora, Embeds, Engine, EngineFacts, EngineSetup
from dynamo_sdk.plugins.config import PluginConfig
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    LegTiming,
    LoadSnapshot,
    LoraSpec,
    PackedTokens,
    Role,
    TokenLogprobs,
    Usage,
    unpack_tokens,
)

from . import stateless
from .loras import LoraTable


class EchoConfig(PluginConfig):
    """``delay_ms``: pause before each token. ``max_num_requests``: more are refused, None = no limit."""

    delay_ms: float = Field(default=0.0, ge=0)
    context_length: int = Field(default=8192, ge=2)
    max_num_requests: int | None = Field(default=None, ge=1)
    embedding_size: int = Field(default=64, ge=1)


class EchoEngine(Engine, Embeds, AdaptsLora):
    """Repeats the prompt; with an adapter, the prompt backwards. Each end of it is an end of sequence; with
    ``ignore_eos``, or before ``min_tokens``, it starts over. All probability is on the token that comes next.
    """

    def __init__(self, setup: EngineSetup, config: EchoConfig | None = None) -> None:
        self._setup = setup
        self._config = config or EchoConfig()
        self._num_active = 0
        self._is_running = False
        self._closed: anyio.Event | None = None
        self._idle: anyio.Event | None = None
        self._loras = LoraTable[None]()

    async def start(self) -> EngineFacts:
        if self._closed is not None:
            raise EngineStartError("an echo engine starts once; make a new one")
        self._closed = anyio.Event()
        self._is_running = True
        await checkpoint()
        return EngineFacts(context_length=self._config.context_length)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        prompt = self._checked(request)
        text = prompt if request.lora is None else prompt[::-1]
        with self._loras.using(request.lora), self._active():
            started_s = time.monotonic()
            position = request.num_generated_tokens
            while True:
                await self._pause()
                token_id = text[position % len(text)]
                position += 1
                finish_reason = self._finish_reason(request, token_id, position, len(text))
                is_handover = finish_reason is None and request.role is Role.PREFILL
                is_last = finish_reason is not None
                num_new = position - request.num_generated_tokens
                yield GenerateChunk(
                    token_ids=(token_id,),
                    logprobs=_certain(token_id, request.sampling.logprobs),
                    finish_reason=finish_reason,
                    usage=Usage(len(text), num_new) if is_last else None,
                    timing=_timing(request, started_s) if is_last else None,
                )
                if is_handover:
                    yield GenerateChunk(
                        finish_reason=FinishReason.HANDOVER,
                        usage=Usage(len(text), num_new),
                        kv_transfer=stateless.TICKET,
                        timing=_timing(request, started_s),
                    )
                if is_last or is_handover:
                    return

    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        """A bag of tokens: equal texts have equal vectors, and texts with common tokens are near."""
        self._require_running()
        tokens = self._unpacked(request.prompt)
        with self._loras.using(request.lora):
            await checkpoint()
        counts = [0.0] * self._config.embedding_size
        for token_id in tokens:
            counts[token_id * 2654435761 % 2**32 % len(counts)] += 1.0  # Knuth's multiplicative hash
        norm = math.sqrt(math.fsum(count * count for count in counts))
        return EmbedOutput(vector=[count / norm for count in counts], num_prompt_tokens=len(tokens))

    async def load_lora(self, lora: LoraSpec) -> None:
        """Any folder will do."""
        self._require_running()
        await self._loras.load(lora, partial(_find_folder, lora))

    async def unload_lora(self, name: str) -> None:
        await self._loras.unload(name, _forget)

    def loras(self) -> tuple[LoraSpec, ...]:
        return self._loras.specs()

    async def drain(self) -> None:
        while self._num_active:
            self._idle = self._idle or anyio.Event()
            await self._idle.wait()
        await checkpoint()

    async def close(self) -> None:
        """Streams that still run raise ``EngineFailed`` at their next token."""
        self._is_running = False
        if self._closed is not None:
            self._closed.set()
        await checkpoint()

    def load(self) -> LoadSnapshot:
        return LoadSnapshot(at_s=time.monotonic(), num_running=self._num_active)

    def check_integrity(self) -> None:
        assert self._num_active >= 0, f"{self._num_active} active requests"

    def _checked(self, request: GenerateRequest) -> list[int]:
        """The prompt's ids, once it is sure that the request can run."""
        self._require_running()
        if request.sampling.max_tokens <= request.num_generated_tokens:
            raise InvalidRequest(
                f"max_tokens is {request.sampling.max_tokens}, "
                f"and {request.num_generated_tokens} tokens are already generated",
                param="max_tokens",
            )
        prompt = self._unpacked(request.prompt, num_more=request.num_generated_tokens)
        ticket = request.kv_transfer
        if ticket is not None and ticket.connector != stateless.NAME:
            raise TicketUnknown(f"the echo engine reads no tickets of {ticket.connector!r}")
        limit = self._config.max_num_requests
        if limit is not None and self._num_active >= limit:
            raise Overloaded(f"the echo engine runs {limit} requests at once and is full")
        return prompt

    def _unpacked(self, prompt: PackedTokens, *, num_more: int = 0) -> list[int]:
        """The ids of a prompt that leaves room for a token after itself and ``num_more`` others."""
        try:
            token_ids = unpack_tokens(prompt)
        except ValueError:
            raise InvalidRequest("the prompt is no packed token ids", param="prompt") from None
        if not token_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if len(token_ids) + num_more >= self._config.context_length:
            raise InvalidRequest(
                f"the prompt has {len(token_ids) + num_more} tokens; "
                f"this model takes at most {self._config.context_length - 1}",
                param="prompt",
            )
        return token_ids

    def _finish_reason(
        self, request: GenerateRequest, token_id: int, position: int, num_prompt_tokens: int
    ) -> FinishReason | None:
        """Why the output ends after ``token_id``, its ``position``-th token counted from one."""
        sampling = request.sampling
        is_prompt_end = position % num_prompt_tokens == 0 and not sampling.ignore_eos
        if position >= sampling.min_tokens and (is_prompt_end or token_id in sampling.stop_token_ids):
            return FinishReason.STOP
        is_context_full = num_prompt_tokens + position >= self._config.context_length
        return FinishReason.LENGTH if position >= sampling.max_tokens or is_context_full else None

    async def _pause(self) -> None:
        """Wait for the next token; raises ``EngineFailed`` when the engine was closed meanwhile."""
        assert self._closed is not None
        if self._config.delay_ms:
            with anyio.move_on_after(self._config.delay_ms / 1000):
                await self._closed.wait()
        else:
            await checkpoint()
        self._require_running()

    def _require_running(self) -> None:
        if not self._is_running:
            raise EngineFailed("the echo engine is not running")

    @contextmanager
    def _active(self) -> Iterator[None]:
        self._num_active += 1
        try:
            yield
        finally:
            self._num_active -= 1
            if not self._num_active and self._idle is not None:
                self._idle.set()
                self._idle = None


async def _find_folder(lora: LoraSpec) -> None:
    if not await anyio.Path(lora.path).is_dir():
        raise InvalidRequest(f"adapter {lora.name!r}: no folder {lora.path!r}", param="lora")


async def _forget(_: None) -> None:
    await checkpoint()


def _certain(token_id: int, num_top: int | None) -> tuple[TokenLogprobs, ...] | None:
    if num_top is None:
        return None
    return (TokenLogprobs(0.0, ((token_id, 0.0),) if num_top else ()),)


def _timing(request: GenerateRequest, started_s: float) -> LegTiming:
    elapsed_s = time.monotonic() - started_s
    if request.role is Role.PREFILL:
        return LegTiming(prefill_s=elapsed_s)
    return LegTiming(decode_s=elapsed_s)
