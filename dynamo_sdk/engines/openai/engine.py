"""``OpenAIEngine``: a server that runs already, by its URL."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import anyio
import httpx
import msgspec
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import (
    ContextLengthExceeded,
    DynamoError,
    EngineFailed,
    EngineStartError,
    InvalidRequest,
    NotFound,
)
from dynamo_sdk.interfaces import Engine, EngineFacts, EngineSetup, Promise
from dynamo_sdk.types import GenerateChunk, GenerateRequest, LoadSnapshot, Role, SamplingParams, pack_tokens

from .config import OpenAIConfig
from .protocol import AnswerReader, ModelList, error_of, request_body

_PROBE_TOKEN = 1


class OpenAIEngine(Engine):
    """Whole requests only. A request that is given up is a connection that is closed; that the server then
    frees what it held is its own business."""

    def __init__(self, setup: EngineSetup, config: OpenAIConfig) -> None:
        self._setup = setup
        self._config = config
        self._where = config.url.rstrip("/").removesuffix("/v1")
        self._model = config.model or setup.model.name
        self._client: httpx.AsyncClient | None = None
        self._context_length = 0
        self._is_closed = False
        self._waiting: dict[str, int] = {}  # tokens of requests without an answer so far
        self._running: set[str] = set()
        self._streams: set[httpx.Response] = set()
        self._idle: anyio.Event | None = None

    # -- life

    async def start(self) -> EngineFacts:
        """Ask for the models, and for one token."""
        await checkpoint()
        if self._client is not None or self._is_closed:
            raise EngineStartError("an openai engine starts once; make a new one")
        self._client = httpx.AsyncClient(
            base_url=self._where,
            headers=self._headers(),
            timeout=httpx.Timeout(
                self._config.read_timeout_s, connect=self._config.connect_timeout_s, pool=None
            ),
            limits=httpx.Limits(max_connections=None),
        )
        try:
            self._context_length = await self._look_up_model(self._client)
            await self._try_out()
        except EngineStartError:
            raise
        except (DynamoError, httpx.HTTPError, msgspec.MsgspecError) as error:
            raise EngineStartError(f"{self._where} does not serve {self._model!r}: {error}") from error
        return EngineFacts(
            context_length=self._context_length,
            unclaimed={Promise.SEED_BY_POSITION: "a server is sent a prompt, and its seed starts over"},
        )

    async def drain(self) -> None:
        while self._waiting or self._running:
            self._idle = self._idle or anyio.Event()
            await self._idle.wait()
        await checkpoint()

    async def close(self) -> None:
        self._is_closed = True
        for stream in list(self._streams):
            await stream.aclose()
        if self._client is not None:
            await self._client.aclose()
        await checkpoint()

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        client = self._checked(request)
        number = request.request_id
        self._waiting[number] = request.num_prompt_tokens + request.num_generated_tokens
        try:
            async with aclosing(self._chunks(client, request)) as chunks:
                async for chunk in chunks:
                    if self._waiting.pop(number, None) is not None:
                        self._running.add(number)
                    yield chunk
        finally:
            self._waiting.pop(number, None)
            self._running.discard(number)
            if self._idle is not None and not self._waiting and not self._running:
                self._idle.set()
                self._idle = None

    async def _chunks(
        self, client: httpx.AsyncClient, request: GenerateRequest
    ) -> AsyncGenerator[GenerateChunk, None]:
        reader = AnswerReader(request, where=self._where)
        body = request_body(request, self._model)
        try:
            async with client.stream(
                "POST", "/v1/completions", json=body, headers=self.headers_of(request)
            ) as response:
                if response.status_code != 200:
                    error = error_of(response.status_code, await response.aread(), where=self._where)
                    if request.lora is not None and isinstance(error, NotFound):
                        raise InvalidRequest(error.message, param="lora")
                    raise error
                self._streams.add(response)
                try:
                    last: GenerateChunk | None = None
                    async for line in response.aiter_lines():  # all of them, so that the connection stays
                        chunk = reader.read(line)
                        if reader.is_over:
                            last = last or chunk
                        elif chunk is not None:
                            yield chunk
                    if last is None:
                        raise EngineFailed(f"{self._where} ended the stream before its end")
                    yield last
                finally:
                    self._streams.discard(response)
        except (httpx.HTTPError, httpx.StreamError, anyio.ClosedResourceError) as error:
            raise EngineFailed(self._failure(error)) from error

    def headers_of(self, request: GenerateRequest) -> dict[str, str]:
        """What a server of a certain kind wants to know beside the body."""
        return {}

    def _failure(self, error: Exception) -> str:
        if self._is_closed:
            return "the engine is closed"
        return f"{self._where}: {type(error).__name__} {error}".rstrip()

    def _checked(self, request: GenerateRequest) -> httpx.AsyncClient:
        if self._client is None or self._is_closed:
            raise EngineFailed("the engine is closed" if self._is_closed else "the engine was not started")
        if request.role is not Role.AGGREGATED:
            raise InvalidRequest("a server behind a URL runs whole requests only", param="role")
        if len(request.prompt) % 4 or len(request.generated) % 4:
            raise InvalidRequest("the prompt is no packed token ids", param="prompt")
        num_known = request.num_prompt_tokens + request.num_generated_tokens
        if not request.num_prompt_tokens:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if request.sampling.max_tokens <= request.num_generated_tokens:
            raise InvalidRequest("max_tokens are already generated", param="max_tokens")
        if self._context_length and num_known >= self._context_length:
            raise ContextLengthExceeded(
                f"the prompt has {num_known} tokens; this model takes at most {self._context_length - 1}",
                param="prompt",
            )
        return self._client

    # -- facts

    def load(self) -> LoadSnapshot | None:
        """Of this engine's own requests; the server may have others."""
        return LoadSnapshot(
            at_s=time.monotonic(),
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_tokens=sum(self._waiting.values()),
        )

    # -- start

    def _headers(self) -> dict[str, str]:
        name = self._config.api_key_env
        if name is None:
            return {}
        key = os.environ.get(name)
        if not key:
            raise EngineStartError(f"args.api_key_env: the environment variable {name} is not set")
        return {"authorization": f"Bearer {key}"}

    async def _look_up_model(self, client: httpx.AsyncClient) -> int:
        """The context length; also settles what the server calls the model."""
        response = await client.get("/v1/models")
        if response.status_code != 200:
            raise error_of(response.status_code, response.content, where=self._where)
        models = {model.id: model for model in msgspec.json.decode(response.content, type=ModelList).data}
        if self._model not in models:
            if self._config.model is not None or len(models) != 1:
                raise EngineStartError(
                    f"{self._where} has no model {self._model!r} (it serves: {', '.join(models) or 'none'}); "
                    "name one of them: args.model"
                )
            (self._model,) = models
        said = models[self._model]
        return (
            self._config.context_length
            or said.max_model_len
            or said.context_length
            or self._context_length_of_files()
        )

    def _context_length_of_files(self) -> int:
        try:
            described = json.loads((Path(self._setup.model.path) / "config.json").read_text())
            return int(described["max_position_embeddings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineStartError(
                f"{self._where} does not say how long a context it takes; set args.context_length"
            ) from error

    async def _try_out(self) -> None:
        request = GenerateRequest(
            request_id="probe",
            model=self._model,
            prompt=pack_tokens([_PROBE_TOKEN]),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
        )
        async with aclosing(self.generate(request)) as chunks:
            async for _ in chunks:
                pass
