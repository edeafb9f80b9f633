"""One handler per route: what to do with an ``Exchange``. Errors are raised, never sent from here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.metrics import CONTENT_TYPE, FrontendMetrics, merge_texts
from dynamo_sdk.types import ModelRecord

from . import validation
from .answer import Format, send_streamed, send_whole
from .backend import Backend
from .chat import ChatFormat, template_messages, template_variables
from .completions import CompletionFormat, prompt_ids, split_prompts
from .decoding import decode_body
from .embeddings import MAX_INPUTS, embed_all, embedding_list
from .exchange import Exchange
from .generation import Generation, plan_generation
from .limits import HttpLimits
from .model_directory import ModelDirectory
from .openapi import Operation, openapi_document
from .protocol import ChatRequest, CompletionRequest, EmbeddingRequest

MODELS_PREFIX = "/v1/models/"
_MANY_TOKENS = 10**18
"""More than any context; keeps a number of a thousand digits out of messages."""


@dataclass(slots=True)
class Routes:
    """What all handlers share. ``added``: routes beside these that the OpenAPI document names."""

    backend: Backend
    metrics: FrontendMetrics
    limits: HttpLimits
    directory: ModelDirectory
    added: list[Operation] = field(default_factory=list)
    started_s: int = field(default_factory=lambda: int(time.time()))

    async def chat_completions(self, exchange: Exchange, received: Received) -> None:
        request = decode_body(received.body, ChatRequest)
        record = self._served(received, request.model)
        validation.refuse_unsupported(request)
        shows_usage = validation.wants_usage_chunk(request)
        logprobs = validation.chat_logprobs(request)
        max_tokens = _max_tokens(
            "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens",
            request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens,
        )
        messages = template_messages(request.messages)
        variables = template_variables(request)
        pipeline = await self.directory.pipeline(record)
        started_s = time.monotonic()
        prompt = await pipeline.encode_chat(
            messages,
            add_generation_prompt=request.add_generation_prompt is not False,
            variables=variables,
        )
        generation = await plan_generation(
            kind="chatcmpl",
            received_s=received.at_s,
            tokenize_s=time.monotonic() - started_s,
            fields=request,
            record=record,
            pipeline=pipeline,
            prompts=[prompt],
            prompt_field="messages",
            max_tokens=max_tokens,
            logprobs=logprobs,
            at_start=True,
            max_choices=self.limits.max_choices,
            headers=exchange.headers,
        )
        format = ChatFormat(request, generation, shows_usage=shows_usage)
        await self._send(exchange, generation, format, request, shows_usage=shows_usage)

    async def completions(self, exchange: Exchange, received: Received) -> None:
        request = decode_body(received.body, CompletionRequest)
        record = self._served(received, request.model)
        validation.refuse_unsupported(request)
        shows_usage = validation.wants_usage_chunk(request)
        logprobs = validation.completion_logprobs(request)
        max_tokens = _max_tokens("max_tokens", request.max_tokens)
        prompts = split_prompts(request.prompt, param="prompt", max_prompts=self.limits.max_choices)
        pipeline = await self.directory.pipeline(record)
        started_s = time.monotonic()
        ids = await prompt_ids(
            pipeline, prompts, param="prompt", add_special_tokens=request.add_special_tokens is not False
        )
        generation = await plan_generation(
            kind="cmpl",
            received_s=received.at_s,
            tokenize_s=time.monotonic() - started_s,
            fields=request,
            record=record,
            pipeline=pipeline,
            prompts=ids,
            prompt_field="prompt",
            max_tokens=max_tokens,
            logprobs=logprobs,
            at_start=False,
            max_choices=self.limits.max_choices,
            headers=exchange.headers,
        )
        echoes = [
            prompt if isinstance(prompt, str) else pipeline.tokenizer.decode(prompt)
            for prompt in (prompts if request.echo else ())
        ]
        format = CompletionFormat(request, generation, echoes, shows_usage=shows_usage)
        await self._send(exchange, generation, format, request, shows_usage=shows_usage)

    async def _send(
        self,
        exchange: Exchange,
        generation: Generation,
        format: Format,
        request: ChatRequest | CompletionRequest,
        *,
        shows_usage: bool,
    ) -> None:
        """Generate, and answer as the request asked: streamed or whole."""
        metrics = self.metrics.model(generation.model)
        with generation.run(self.backend, metrics, deadline_s=self.limits.deadline_s) as inbox:
            if request.stream:
                await send_streamed(exchange, generation, inbox, format, shows_usage=shows_usage)
            else:
                await send_whole(exchange, generation, inbox, format)

    async def embeddings(self, exchange: Exchange, received: Received) -> None:
        request = decode_body(received.body, EmbeddingRequest)
        record = self._served(received, request.model)
        prompts = split_prompts(request.input, param="input", max_prompts=MAX_INPUTS)
        pipeline = await self.directory.pipeline(record)
        ids = await prompt_ids(pipeline, prompts, param="input")
        for index, prompt in enumerate(ids):
            where = "input" if len(ids) == 1 else f"input[{index}]"
            pipeline.check_fits(len(prompt), param=where)
        outputs = await embed_all(
            self.backend,
            record,
            ids,
            max_concurrent=self.limits.max_concurrent_embeddings,
            deadline_s=self.limits.deadline_s,
        )
        exchange.send_json(embedding_list(request, record.name, outputs))

    async def models(self, exchange: Exchange, received: Received) -> None:
        records = self.backend.models().values()
        cards = [self._card(record) for record in sorted(records, key=lambda record: record.name)]
        exchange.send_json({"object": "list", "data": cards})

    async def model(self, exchange: Exchange, received: Received) -> None:
        record = self.directory.record(exchange.path.removeprefix(MODELS_PREFIX))
        exchange.send_json(self._card(record))

    async def health(self, exchange: Exchange, received: Received) -> None:
        """200 only when the graph can answer."""
        health = self.backend.health()
        body = HealthBody(
            status="healthy" if health.is_ready else "unhealthy",
            reason=health.reason,
            models=sorted(self.backend.models()),
            details=health.details,
        )
        exchange.send_json(body, status=200 if health.is_ready else 503)

    async def live(self, exchange: Exchange, received: Received) -> None:
        exchange.send_json({"status": "live"})

    async def prometheus(self, exchange: Exchange, received: Received) -> None:
        texts = [self.metrics.render(), *await self.backend.other_metrics()]
        exchange.send_bytes(merge_texts(texts), content_type=CONTENT_TYPE.encode())

    async def openapi(self, exchange: Exchange, received: Received) -> None:
        exchange.send_json(openapi_document(tuple(self.added)))

    def _served(self, received: Received, model: str) -> ModelRecord:
        """The model's record; from here on the request counts as one of this model."""
        record = self.directory.record(model)
        received.model = record.name
        self.metrics.model(record.name).inflight.inc()
        return record

    def _card(self, record: ModelRecord) -> ModelCard:
        return ModelCard(
            id=record.name,
            created=self.started_s,
            context_length=record.context_length,
            parent=record.parent,
        )


@dataclass(slots=True)
class Received:
    """A request that has arrived whole. ``model`` is empty until it is known to exist."""

    body: bytes
    at_s: float
    model: str = ""


class HealthBody(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    reason: str | None
    models: list[str]
    details: dict[str, str]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "dynamo-sdk"
    context_length: int
    parent: str | None = None


def _max_tokens(field: str, given: int | None) -> int | None:
    """At least one token; that it fits the context is checked with the prompt."""
    if given is None:
        return None
    if given < 1:
        raise InvalidRequest(f"{field} is {str(given)[:60]}; allowed is 1 or more", param=field)
    return min(given, _MANY_TOKENS)
