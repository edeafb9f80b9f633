"""What a request's flow remembers of its legs: the one that runs, and what one left for the next."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_sdk.interfaces import Freed, PrefillDone
from dynamo_sdk.types import GenerateChunk, GenerateRequest, KVSource, KVTransferParams, Role, WorkerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a router chose of a pool. ``num_cached_tokens``: what should be there of the prompt."""

    dp_rank: int | None = None
    num_cached_tokens: int = 0
    kv_source: KVSource | None = None


@dataclass(slots=True)
class Leg:
    """Under way."""

    worker: WorkerRecord
    pool: Role
    request: GenerateRequest
    has_answered: bool = False
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None

    def saw(self, chunk: GenerateChunk) -> None:
        self.num_output_tokens += len(chunk.token_ids)
        if chunk.usage is not None:
            self.num_cached_tokens = chunk.usage.num_cached_tokens

    def prefill_done(self) -> PrefillDone:
        return PrefillDone(
            request_id=self.request.request_id,
            worker_id=self.worker.worker_id,
            num_cached_tokens=self.num_cached_tokens,
        )

    def freed(self, *, is_failure: bool) -> Freed:
        return Freed(
            request_id=self.request.request_id,
            worker_id=self.worker.worker_id,
            is_failure=is_failure,
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=self.num_cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a prefill leg left for decode to fetch."""

    worker: WorkerRecord
    request_id: str
    params: KVTransferParams | None
    received_s: float
