"""What a request flow asks its shell to do. Everything is in these values; nothing is peeked at."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import RouterFact
from dynamo_sdk.types import GenerateChunk, GenerateRequest, Role, WorkerId, WorkerRecord


@dataclass(frozen=True, slots=True)
class Route:
    """Choose a worker of ``pool``; answer with ``routed`` or ``not_routed``.

    ``excluded`` failed this request before. ``can_wait``: the request has begun, so it is worth waiting
    a while for a worker to come back.
    """

    pool: Role
    num_tokens: int
    excluded: frozenset[WorkerId] = frozenset()
    can_wait: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Start a leg on ``worker``; answer with ``received`` for each chunk and ``failed`` at most once."""

    leg: Role
    worker: WorkerRecord
    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class CancelLeg:
    """Stop a leg; whatever it still answers is ignored."""

    leg: Role


@dataclass(frozen=True, slots=True)
class ReleaseBlocks:
    """Tell a prefill worker that nobody will fetch what it holds for this leg. Best effort."""

    worker_id: WorkerId
    request_id: str


@dataclass(frozen=True, slots=True)
class Emit:
    """New tokens for the client."""

    chunk: GenerateChunk


@dataclass(frozen=True, slots=True)
class Observe:
    """A fact for the router of ``pool``."""

    pool: Role
    fact: RouterFact


@dataclass(frozen=True, slots=True)
class Migrated:
    """The request starts again elsewhere, after ``num_kept_tokens``, because of ``error``."""

    error: DynamoError
    num_kept_tokens: int


@dataclass(frozen=True, slots=True)
class Fail:
    """The request has failed; nothing follows."""

    error: DynamoError


Action = Route | Send | CancelLeg | ReleaseBlocks | Emit | Observe | Migrated | Fail
