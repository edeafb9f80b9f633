"""Small stand-ins for the other interfaces; each does what it is told and remembers what it saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import (
    CacheKey,
    Candidate,
    Handover,
    KVConnector,
    KVStore,
    KVStoreStatistics,
    Planner,
    PlannerEffects,
    PlannerInput,
    Router,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerId, WorkerRecord


class FakeRouter(Router):
    """Chooses the workers of ``script`` in turn, as long as they are candidates; else the first candidate."""

    def __init__(self, script: Iterable[str] = ()) -> None:
        self._script = [WorkerId(name) for name in script]
        self.requests: list[RoutingRequest] = []
        self.facts: list[RouterFact] = []

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        self.requests.append(request)
        wanted = self._script.pop(0) if self._script else None
        chosen = next((candidate for candidate in candidates if candidate.worker_id == wanted), candidates[0])
        reason = "scripted" if chosen.worker_id == wanted else "first"
        return RoutingDecision(worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, reason=reason)

    def observe(self, fact: RouterFact, now_s: float) -> None:
        self.facts.append(fact)


class FakePlanner(Planner):
    """Carries out ``script``, one step per tick, then nothing; ticks every ``interval_s``."""

    def __init__(self, script: Iterable[dict[str, int]] = (), *, interval_s: float = 1.0) -> None:
        self._script = list(script)
        self._interval_s = interval_s
        self.inputs: list[PlannerInput] = []

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        self.inputs.append(facts)
        scale_to = self._script.pop(0) if self._script else {}
        return PlannerEffects(
            next_tick_s=facts.now_s + self._interval_s,
            scale_to=scale_to,
            reasons=tuple(f"scripted: {name} to {target}" for name, target in scale_to.items()),
        )


@dataclass(slots=True)
class FakeKVConnector(KVConnector):
    """A connector of either kind. Tickets name the request, so that a test sees which leg got which."""

    handover: Handover = Handover.SEQUENTIAL
    first_token: Role = Role.PREFILL
    name: str = "fake"
    ttl_s: float | None = None
    tickets: list[KVTransferParams] = field(default_factory=list)

    def prefill_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, decode: WorkerRecord | None
    ) -> KVTransferParams | None:
        if self.handover is Handover.SEQUENTIAL:
            return None
        return self._ticket(f"{request.request_id} prefill")

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        if answer is not None and answer.connector != self.name:
            raise TransferError(f"{answer.connector!r} is not {self.name!r}")
        ticket = self._ticket(f"{request.request_id} decode from {prefill.worker_id}")
        if answer is not None and self.ttl_s is None:
            return msgspec.structs.replace(ticket, ttl_s=answer.ttl_s)
        return ticket

    def _ticket(self, text: str) -> KVTransferParams:
        ticket = KVTransferParams(connector=self.name, payload=text.encode(), ttl_s=self.ttl_s)
        self.tickets.append(ticket)
        return ticket


class MemoryKVStore(KVStore):
    """Blocks in a dict; the least recently used ones make room. ``capacity_bytes=None``: no limit."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self._capacity_bytes = capacity_bytes
        self._blocks: dict[CacheKey, bytes] = {}  # least recently used first
        self._used_bytes = 0

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        await checkpoint()
        copy = bytes(block)
        if self._capacity_bytes is not None and len(copy) > self._capacity_bytes:
            return False
        self._forget(key)
        self._blocks[key] = copy
        self._used_bytes += len(copy)
        while self._capacity_bytes is not None and self._used_bytes > self._capacity_bytes:
            self._forget(next(iter(self._blocks)))
        return True

    async def get(self, key: CacheKey) -> bytes | None:
        await checkpoint()
        block = self._blocks.pop(key, None)
        if block is not None:
            self._blocks[key] = block
        return block

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        await checkpoint()
        return [key in self._blocks for key in keys]

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await checkpoint()
        for key in keys:
            self._forget(key)

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(
            num_blocks=len(self._blocks), used_bytes=self._used_bytes, capacity_bytes=self._capacity_bytes
        )

    def _forget(self, key: CacheKey) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._used_bytes -= len(block)
