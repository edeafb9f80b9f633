"""``POST /v1/embeddings``."""

from __future__ import annotations

import asyncio
import base64
import sys
from array import array
from collections.abc import Sequence
from uuid import uuid4

import msgspec

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.types import EmbedOutput, EmbedRequest, ModelRecord, pack_tokens

from .backend import Backend, GenerateOptions
from .protocol import EmbeddingRequest
from .sse import encode_json

MAX_INPUTS = 2048
"""OpenAI's own bound on the entries of ``input``."""


class Embedding(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


async def embed_all(
    backend: Backend,
    record: ModelRecord,
    prompts: Sequence[Sequence[int]],
    *,
    max_concurrent: int,
    deadline_s: float,
) -> list[EmbedOutput]:
    """One output per prompt, in order. The first error, or a cancellation, ends the others."""
    gate = asyncio.Semaphore(max_concurrent)
    options = GenerateOptions(deadline_s=deadline_s)
    request_id = uuid4().hex

    async def embed(index: int, prompt: Sequence[int]) -> EmbedOutput:
        async with gate:
            request = EmbedRequest(
                request_id=f"{request_id}-{index}",
                model=record.parent or record.name,
                lora=record.name if record.parent else None,
                prompt=pack_tokens(prompt),
            )
            return await backend.embed(request, options=options)

    tasks = [asyncio.create_task(embed(index, prompt)) for index, prompt in enumerate(prompts)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def embedding_list(request: EmbeddingRequest, model: str, outputs: Sequence[EmbedOutput]) -> bytes:
    """The answer as JSON. Raises ``InvalidRequest`` when ``dimensions`` is not the model's own."""
    size = len(outputs[0].vector)
    if request.dimensions is not None and request.dimensions != size:
        raise InvalidRequest(
            f"dimensions is {str(request.dimensions)[:60]}; allowed is {size}, what model {model!r} gives",
            param="dimensions",
        )
    num_tokens = sum(output.num_prompt_tokens for output in outputs)
    is_packed = request.encoding_format == "base64"
    return encode_json(
        EmbeddingList(
            data=[
                Embedding(index, _base64(output.vector) if is_packed else output.vector)
                for index, output in enumerate(outputs)
            ],
            model=model,
            usage=EmbeddingUsage(num_tokens, num_tokens),
        )
    )


def _base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI packs it."""
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")
