"""``Backend``: what the HTTP half of the frontend stands on. It knows tokens, never HTTP or text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping

import msgspec

from dynamo_sdk.types import EmbedOutput, EmbedRequest, GenerateChunk, GenerateRequest, ModelRecord


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the graph can answer. ``reason`` is a sentence for people when it cannot; ``details`` name
    each part and its state."""

    is_ready: bool
    reason: str | None = None
    details: dict[str, str] = msgspec.field(default_factory=dict)


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to serve one request, beside what to generate. ``deadline_s``: seconds from now."""

    deadline_s: float


class Backend(ABC):
    """Serves requests. All methods are called on one event loop, from many tasks at once."""

    @abstractmethod
    def models(self) -> Mapping[str, ModelRecord]:
        """What can be served now, by the name clients use; must not block."""

    def is_planned(self, name: str) -> bool:
        """Whether this model will be servable once its workers are back; must not block. It makes the
        difference between "try later" and "there is no such model"."""
        return False

    @abstractmethod
    def health(self) -> Health:
        """Must not block."""

    @abstractmethod
    def generate(
        self, request: GenerateRequest, *, options: GenerateOptions
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The chunks of one request as its client should see them: retries, hand-over and migration are
        invisible, exactly one and last chunk has a ``finish_reason``, never ``HANDOVER``. An earlier chunk
        may carry ``usage`` too, so that cached tokens are known when a stop string ends the request.

        Closing the generator, before the first chunk or at any later moment, frees everything the request
        holds before the close returns. Raises ``DynamoError``s only.
        """

    @abstractmethod
    async def embed(self, request: EmbedRequest, *, options: GenerateOptions) -> EmbedOutput:
        """Cancellable. Raises ``DynamoError``s; ``InvalidRequest`` when the model cannot embed."""

    async def worker_metrics(self) -> list[bytes]:
        """Prometheus text of each worker that answered; series of different workers differ in a label."""
        return []
