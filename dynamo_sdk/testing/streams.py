"""Asking an engine, and reading the whole answer: what every engine test needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from dynamo_sdk.interfaces import Engine
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    Role,
    SamplingParams,
    TokenLogprobs,
    Usage,
    WorkerId,
    WorkerRecord,
    pack_tokens,
)

_numbers = itertools.count()


def generate_request(
    prompt: Iterable[int] = (11, 12, 13),
    sampling: SamplingParams | None = None,
    *,
    generated: Iterable[int] = (),
    role: Role = Role.AGGREGATED,
    request_id: str | None = None,
    model: str = "model",
) -> GenerateRequest:
    """A request with an id of its own; greedy and eight tokens long unless ``sampling`` says otherwise."""
    return GenerateRequest(
        request_id=request_id or f"request-{next(_numbers)}",
        model=model,
        prompt=pack_tokens(prompt),
        sampling=sampling or SamplingParams(max_tokens=8, temperature=0.0),
        generated=pack_tokens(generated),
        role=role,
    )


def worker_record(name: str, role: Role, *, handover_address: str | None = "127.0.0.1:9") -> WorkerRecord:
    """A ready worker on a socket of this host."""
    return WorkerRecord(
        worker_id=WorkerId(name),
        service=name,
        replica=0,
        address=f"unix:/{name}",
        is_ready=True,
        role=role,
        handover_address=handover_address,
    )


@dataclass(slots=True)
class Answer:
    """A stream, read to its end. The properties speak of the last chunk; None where it lacks something."""

    chunks: list[GenerateChunk] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for chunk in self.chunks for token_id in chunk.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [entry for chunk in self.chunks for entry in chunk.logprobs or ()]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.chunks[-1].finish_reason if self.chunks else None

    @property
    def usage(self) -> Usage | None:
        return self.chunks[-1].usage if self.chunks else None

    @property
    def kv_transfer(self) -> KVTransferParams | None:
        return self.chunks[-1].kv_transfer if self.chunks else None


async def read_all(engine: Engine, request: GenerateRequest) -> Answer:
    """Run ``request`` to the end of its stream; raises what the engine raises."""
    answer = Answer()
    stream = engine.generate(request)
    try:
        async for chunk in stream:
            answer.chunks.append(chunk)
    finally:
        await stream.aclose()
    return answer
