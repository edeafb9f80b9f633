"""``Engine``: what turns token ids into token ids. Read this file to write one.

An engine never sees HTTP, text or templates; it gets packed token ids and yields new ones. What not
every engine can do is a small interface beside ``Engine``: ``Embeds``, ``AdaptsLora``, ``PublishesKVEvents``,
``PublishesMetrics``, ``ExposesBlocks`` (in ``block_memory``). Implement what you have; nothing is a flag.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from dynamo_sdk.types.kv_events import KVEventBatch
from dynamo_sdk.types.loads import ForwardPassMetrics, LoadSnapshot
from dynamo_sdk.types.models import LoraSpec, ModelSpec
from dynamo_sdk.types.outputs import GenerateChunk
from dynamo_sdk.types.requests import EmbedOutput, EmbedRequest, GenerateRequest, Role

from .item_source import ItemSource
from .kv_tiers import KVSharing, KVTierSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What every engine is built from: ``YourEngine(setup, config)``.

    ``config`` is an instance of the descriptor's config model (``None`` without one), already validated.
    ``connector_args`` is what the graph's KV connector wants this engine to be started with, JSON types.
    ``kv_tiers``: where to keep blocks beyond the device, from the fastest down; only for engines whose
    descriptor says that they take some. ``kv_sharing``: for engines that open theirs to other workers by
    themselves (``ServedTiers``).
    ``loras`` are adapters that an ``AdaptsLora`` will be asked to load once it has started: it can keep room
    for them.
    """

    model: ModelSpec
    role: Role
    connector: str | None = None
    connector_args: dict[str, str] = field(default_factory=dict[str, str])
    kv_tiers: tuple[KVTierSetup, ...] = ()
    loras: tuple[LoraSpec, ...] = ()
    kv_sharing: KVSharing | None = None


class Promise(StrEnum):
    """What an engine may say that it does not claim. All else in this file holds for every engine."""

    SEED_BY_POSITION = "seed_by_position"
    """Chance is a function of the seed and the position alone: a sampled request that moves to another worker
    goes on with the tokens that it would have had. Without it, it goes on with other tokens, as likely."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known once the engine has started. ``block_size`` in tokens; None = no paged KV cache.
    ``model_digest`` names config and weights, so that workers of different ones are told apart.
    ``unclaimed``: promises that the engine does not make, each with the reason.
    ``handover_address``: where legs of a hand-over find this engine, for its KV connector to read."""

    context_length: int
    block_size: int | None = None
    num_blocks: int | None = None
    dp_size: int = 1
    model_digest: str | None = None
    unclaimed: dict[Promise, str] = {}
    handover_address: str | None = None


class Engine(ABC):
    """One model, served.

    Life: ``__init__`` (cheap, no I/O) -> ``start`` once -> ``generate`` from many tasks at once ->
    ``drain`` -> ``close``. All methods are called on one event loop; heavy work belongs on a thread or
    in a process of the engine's own.
    """

    @abstractmethod
    async def start(self) -> EngineFacts:
        """Load the model and get ready to generate. Raises ``EngineStartError``. Cancellable."""

    @abstractmethod
    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Yield the new tokens of ``request``, as deltas, in order; exactly one, last chunk has a
        ``finish_reason`` and ``usage``.

        Closing the generator (or cancelling the task that runs it), before the first token or at any
        later moment, aborts the request and frees what it holds before the close returns.
        ``request.generated`` counts as output that was already delivered.
        ``role=PREFILL`` yields the first new token and then ``HANDOVER``, unless that token finished
        the request.
        Raises ``InvalidRequest`` (before the first chunk), ``Overloaded``, ``EngineFailed``.
        """

    @abstractmethod
    async def close(self) -> None:
        """Abort everything and give all resources back. Idempotent; also after a failed ``start``."""

    async def drain(self) -> None:
        """Return when no request is left. New ones are kept away by the caller. Default: at once."""

    def load(self) -> LoadSnapshot | None:
        """How busy the engine is now; must not block. None = it cannot tell."""
        return None

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the engine's own books do not add up. For tests; may be slow."""


class ProbesItself(ABC):
    """An engine that cannot answer a whole request in every role, and so has a way of its own to be tried."""

    @abstractmethod
    async def probe(self) -> None:
        """Return when a forward pass has given a token. Cancellable. Raises ``EngineFailed``."""


class NoticesItsEnd(ABC):
    """An engine that can break for good, such as one whose work is in a process of its own."""

    @abstractmethod
    async def wait_failed(self) -> None:
        """Never return while the engine can go on; raise ``EngineFailed`` when it is beyond repair. Its
        worker then ends, so that another takes its place."""


class Embeds(ABC):
    """An engine that can embed text."""

    @abstractmethod
    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        """One L2-normalised vector for one prompt. Cancellable. Raises ``InvalidRequest``."""


class AdaptsLora(ABC):
    """An engine that serves LoRA adapters of its model, beside the model itself and in the same batches.

    ``GenerateRequest.lora`` and ``EmbedRequest.lora`` name one; while no such adapter is loaded they are
    refused with ``ModelNotFound``, before the first chunk. Adapters share no KV with each other or with the
    model. Both methods may be called at any time after ``start``, while requests run; callers wait for one
    call to end before they make another for the same name.
    """

    @abstractmethod
    async def load_lora(self, lora: LoraSpec) -> None:
        """Serve ``lora`` when this returns. What is loaded already, name and path, stays as it is. KV that
        another adapter of this name has left is not used.

        Raises ``InvalidRequest``, and nothing has changed: the name is another adapter's, the folder has
        none that fits the model, or there is no room for one more.
        """

    @abstractmethod
    async def unload_lora(self, name: str) -> None:
        """Refuse requests for it from now on; return when those that run have ended and its memory is free.
        When this is cancelled, new requests stay refused, and it can be called again.

        Raises ``ModelNotFound`` where there is no such adapter.
        """

    @abstractmethod
    def loras(self) -> tuple[LoraSpec, ...]:
        """Those that requests may name now; must not block."""


class OpensSources(ABC):
    """An engine whose chunks can also be had without a generator, which saves a task's turn per token."""

    @abstractmethod
    def open(self, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        """``generate`` by plain calls: the same chunks, the same errors, the invalid request's here."""


class PublishesKVEvents(ABC):
    """An engine that says which KV blocks it holds."""

    @abstractmethod
    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        """Call ``listener`` on the engine's event loop for each batch from now on; it must not block."""

    @abstractmethod
    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        """Batches that rebuild the present state from nothing, one per dp rank; each carries the
        sequence number of the last batch that is part of it. A reader that saw a gap asks for this."""


class PublishesMetrics(ABC):
    """An engine that reports each forward pass."""

    @abstractmethod
    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        """Call ``listener`` on the engine's event loop once per step from now on; it must not block."""
