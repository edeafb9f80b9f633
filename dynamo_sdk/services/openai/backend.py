"""``Backend``: what the HTTP half of the frontend stands on. It knows tokens, never HTTP or text."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from dynamo_sdk.routing.explanation import Explanation
from dynamo_sdk.types import EmbedOutput, EmbedRequest, GenerateChunk, GenerateRequest, ModelRecord


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the graph can answer. ``reason`` is a sentence for people when it cannot; ``details`` name
    each part and its state."""

    is_ready: bool
    reason: str | None = None
    details: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingHints:
    """What a client says about where its request should go. ``worker``: the id of one, for the router
    ``direct``. ``explanations``: each decision about the request is explained in there, unless it is None."""

    session: str | None = None
    tenant: str | None = None
    worker: str | None = None
    explanations: list[Explanation] | None = None


NO_HINTS = RoutingHints()


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to serve one request, beside what to generate. ``deadline_s``: seconds from now."""

    deadline_s: float
    hints: RoutingHints = NO_HINTS


class ChunkSink(ABC):
    """Takes the chunks of one request as its client should see them, in the event-loop tick in which they
    arrive. Must not block; may cancel the call from inside."""

    @abstractmethod
    def on_chunk(self, chunk: GenerateChunk) -> None:
        """Retries, hand-over and migration are invisible. Exactly one and the last chunk has a
        ``finish_reason``, never ``HANDOVER``. An earlier one may carry ``usage`` too, so that cached tokens
        are known when a stop string ends the request."""

    @abstractmethod
    def on_error(self, error: Exception) -> None:
        """The request has failed and holds nothing any more; nothing follows."""


class BackendCall(ABC):
    """A request under way."""

    @abstractmethod
    def cancel(self) -> None:
        """Free everything the request holds; its sink hears nothing more. Idempotent, also after the end."""

    @abstractmethod
    def pause(self) -> None:
        """The client is slow to read: ask for no more. What is on the way may still come."""

    @abstractmethod
    def resume(self) -> None: ...


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
    def generate(self, request: GenerateRequest, sink: ChunkSink, *, options: GenerateOptions) -> BackendCall:
        """Start a request; ``sink`` hears nothing before this returns. ``on_error`` gets ``DynamoError``s,
        anything else is a bug. Raises ``NotFound`` for a model that is not served."""

    @abstractmethod
    async def embed(self, request: EmbedRequest, *, options: GenerateOptions) -> EmbedOutput:
        """Cancellable. Raises ``DynamoError``s; ``InvalidRequest`` when the model cannot embed."""

    async def other_metrics(self) -> list[bytes]:
        """Prometheus text of each worker and other frontend that answered; series differ in a label."""
        return []


async def run_to_end(start: Callable[[ChunkSink], BackendCall]) -> None:
    """Serve a request whose tokens nobody wants. Raises what ended it."""
    waiter = _Waiter()
    call = start(waiter)
    try:
        await waiter.done
    finally:
        call.cancel()


class _Waiter(ChunkSink):
    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_chunk(self, chunk: GenerateChunk) -> None:
        if chunk.finish_reason is not None and not self.done.done():
            self.done.set_result(None)

    def on_error(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
