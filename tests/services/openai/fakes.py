"""A backend that plays a script, and a real server around it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer

import dynamo_sdk
from dynamo_sdk.errors import DynamoError
from dynamo_sdk.services.openai import (
    Backend,
    BackendCall,
    ChunkSink,
    GenerateOptions,
    Health,
    HttpLimits,
    OpenAIApp,
    serve,
)
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    LegTiming,
    ModelRecord,
    TokenLogprobs,
    Usage,
    unpack_tokens,
)
from tests.services.chunks import PumpedCall

FOLDER = Path(dynamo_sdk.__file__).parent / "demo_model"
TOKENIZER = HfTokenizer.from_file(str(FOLDER / "tokenizer.json"))
END_ID = TOKENIZER.token_to_id("<|end|>")
CONTEXT_LENGTH = 512
MODEL = "demo"


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


@dataclass
class ScriptedBackend(Backend):
    """Answers with ``text``, token by token; the ids of each request are at hand afterwards.

    ``gate`` holds back every token after the first ``free_tokens`` while it is not set. ``fail`` raises
    after ``fail_after`` tokens.
    """

    text: str = "A KV block is a fixed run of tokens' KV."
    per_choice: Callable[[GenerateRequest], list[int]] | None = None
    is_ready: bool = True
    gate: asyncio.Event | None = None
    free_tokens: int = 1
    fail: DynamoError | Exception | None = None
    fail_after: int = 0
    num_cached: int = 0
    requests: list[GenerateRequest] = field(default_factory=list)
    num_open: int = 0
    num_tokens_sent: int = 0
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    records: dict[str, ModelRecord] = field(
        default_factory=lambda: {
            MODEL: ModelRecord(name=MODEL, path=str(FOLDER), context_length=CONTEXT_LENGTH)
        }
    )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` of this object holds."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def models(self) -> Mapping[str, ModelRecord]:
        return self.records

    def health(self) -> Health:
        return Health(is_ready=self.is_ready, reason=None if self.is_ready else "no decode worker is ready")

    def generate(self, request: GenerateRequest, sink: ChunkSink, *, options: GenerateOptions) -> BackendCall:
        self.requests.append(request)
        self.num_open += 1
        self.all_closed.clear()
        self.changed.set()
        return PumpedCall(self._chunks(request), sink, on_end=self._count_end)

    def _count_end(self) -> None:
        self.num_open -= 1
        if self.num_open == 0:
            self.all_closed.set()

    async def _chunks(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        script = self.per_choice(request) if self.per_choice else [*ids_of(self.text), END_ID]
        wanted = script[: request.sampling.max_tokens]
        reason = FinishReason.LENGTH if len(wanted) < len(script) else FinishReason.STOP
        for index, token_id in enumerate(wanted):
            if self.fail is not None and index >= self.fail_after:
                raise self.fail
            if self.gate is not None and index >= self.free_tokens:
                await self.gate.wait()
            await asyncio.sleep(0)
            self.num_tokens_sent += 1
            self.changed.set()
            is_last = index == len(wanted) - 1
            yield GenerateChunk(
                token_ids=(token_id,),
                logprobs=_logprobs(request, token_id),
                finish_reason=reason if is_last else None,
                usage=Usage(request.num_prompt_tokens, len(wanted), self.num_cached) if is_last else None,
                timing=self.timing(request) if is_last else None,
            )

    def timing(self, request: GenerateRequest) -> LegTiming | None:
        return None

    async def embed(self, request: EmbedRequest, *, options: GenerateOptions) -> EmbedOutput:
        prompt = unpack_tokens(request.prompt)
        await asyncio.sleep(0)
        return EmbedOutput(vector=[0.5, float(len(prompt)), -0.25], num_prompt_tokens=len(prompt))

    async def other_metrics(self) -> list[bytes]:
        return [b'# HELP w_total x\n# TYPE w_total counter\nw_total{worker_id="a"} 1.0\n']


def _logprobs(request: GenerateRequest, token_id: int) -> tuple[TokenLogprobs, ...] | None:
    num_top = request.sampling.logprobs
    if num_top is None:
        return None
    top = tuple(((token_id + i) % TOKENIZER.get_vocab_size(), -0.5 - i) for i in range(num_top))
    return (TokenLogprobs(-0.5, top),)


@asynccontextmanager
async def running(backend: Backend, **limits: float) -> AsyncIterator[tuple[str, int]]:
    """A real server on a free port; yields (host, port) and waits until it has ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = OpenAIApp(backend, limits=HttpLimits(**{"drain_timeout_s": 2.0, **limits}))  # type: ignore[arg-type]
    shutdown = asyncio.Event()
    with closing(listener):
        server = asyncio.create_task(serve(app, listener, shutdown=shutdown))
        try:
            yield listener.getsockname()
        finally:
            shutdown.set()
            await server
