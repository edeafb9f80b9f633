"""What a request flow asks its shell to do. Everything is in these values; nothing is peeked at."""

from __future__ import annotations

import msgspec

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import RouterFact
from dynamo_sdk.types import GenerateChunk, GenerateRequest, Role, WorkerId, WorkerRecord


class Route(msgspec.Struct, frozen=True):
    """Choose a worker of ``pool``; answer with ``routed`` or ``not_routed``.

    ``excluded`` failed this request before. ``can_wait``: the request has begun, so it is worth waiting
    a while for a worker to come back.
    """

    pool: Role
    num_tokens: int
    excluded: frozenset[WorkerId] = frozenset()
    can_wait: bool = False


class Send(msgspec.Struct, frozen=True):
    """Start a leg on ``worker``; answer with ``received`` for each chunk and ``failed`` at most once."""

    leg: Role
    worker: WorkerRecord
    request: GenerateRequest


class CancelLeg(msgspec.Struct, frozen=True):
    """Stop a leg; whatever it still answers is ignored."""

    leg: Role


class ReleaseBlocks(msgspec.Struct, frozen=True):
    """Tell a prefill worker that nobody will fetch what it holds for this leg. Best effort."""

    worker_id: WorkerId
    request_id: str


class Emit(msgspec.Struct, frozen=True):
    """New tokens for the client."""

    chunk: GenerateChunk


class Observe(msgspec.Struct, frozen=True):
    """A fact for the router of ``pool``."""

    pool: Role
    fact: RouterFact


class Migrated(msgspec.Struct, frozen=True):
    """The request starts again elsewhere, after ``num_kept_tokens``, because of ``error``."""

    error: DynamoError
    num_kept_tokens: int


class Fail(msgspec.Struct, frozen=True):
    """The request has failed; nothing follows."""

    error: DynamoError


Action = Route | Send | CancelLeg | ReleaseBlocks | Emit | Observe | Migrated | Fail
