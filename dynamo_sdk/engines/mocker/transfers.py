"""``Transfers``: decode legs on their way in, while the KV of their prompts crosses the wire.

::

    add ──> waits for blocks ──> blocks reserved, KV on its way ──> running, its prompt as good as computed
            (first come, first served)   (takes the time of its bytes)

No bytes move: a transfer is the time that it takes. Each has the whole bandwidth to itself.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import BlockReservation, CacheKey
from dynamo_sdk.scheduling import Scheduler, SequenceState
from dynamo_sdk.scheduling.sequence import open_sequence
from dynamo_sdk.types import GenerateRequest

Keys = Sequence[CacheKey] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCost:
    """What it takes to move KV. ``is_cached_free``: blocks that decode holds already cost nothing."""

    bytes_per_token: int
    bytes_per_s: float
    is_cached_free: bool = False

    def num_bytes(self, request: GenerateRequest, reservation: BlockReservation, block_size: int) -> int:
        num_tokens = request.num_prompt_tokens
        if self.is_cached_free:
            num_tokens = max(0, num_tokens - reservation.num_cached_blocks * block_size)
        return num_tokens * self.bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One prompt's KV on its way."""

    request: GenerateRequest
    num_bytes: int
    duration_s: float


class Transfers:
    """``speedup_ratio``: everything takes this many times less time."""

    def __init__(self, scheduler: Scheduler, cost: TransferCost, *, speedup_ratio: float) -> None:
        self._scheduler = scheduler
        self._cost = cost
        self._bytes_per_s = cost.bytes_per_s * speedup_ratio
        self._waiting: dict[str, tuple[GenerateRequest, Keys]] = {}  # for blocks, in order
        self._moving: dict[str, Transfer] = {}
        self._arrivals: list[tuple[float, int, Transfer]] = []  # a heap; may name cancelled ones
        self._order = itertools.count()
        self._refused_at: tuple[int, int, int] | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting or request_id in self._moving

    def __len__(self) -> int:
        return len(self._waiting) + len(self._moving)

    @property
    def next_arrival_s(self) -> float | None:
        """When the next transfer is over; None when none is under way."""
        while self._arrivals:
            at_s, _, transfer = self._arrivals[0]
            if self._moving.get(transfer.request.request_id) is transfer:
                return at_s
            heapq.heappop(self._arrivals)
        return None

    @property
    def num_waiting(self) -> int:
        """Those that wait for blocks."""
        return len(self._waiting)

    def add(self, request: GenerateRequest, now_s: float, keys: Keys = None) -> None:
        """Start a transfer now, or when blocks are there. ``keys``: of its leading blocks.

        Raises ``InvalidRequest`` when it can never run.
        """
        request_id = request.request_id
        if request_id in self or self._scheduler.state_of(request_id) is not None:
            raise InvalidRequest(
                f"request id {request_id!r} is already in use on this worker", param="request_id"
            )
        if self._waiting:  # behind others: only find out whether it can run at all
            open_sequence(
                request, self._scheduler.config, order=(0, 0), state=SequenceState.WAITING, keys=keys
            )
        elif self._start(request, now_s, keys):
            return
        self._waiting[request_id] = request, keys
        self._refused_at = None

    def cancel(self, request_id: str) -> bool:
        """Forget a request that is on its way; False if there is none of this id."""
        if self._waiting.pop(request_id, None) is not None:
            return True
        if self._moving.pop(request_id, None) is None:
            return False
        self._scheduler.release(request_id)
        return True

    def advance(self, now_s: float) -> list[Transfer]:
        """Give blocks to those who wait; the transfers that are over, now running on the scheduler."""
        arrived: list[Transfer] = []
        while (at_s := self.next_arrival_s) is not None and at_s <= now_s:
            transfer = heapq.heappop(self._arrivals)[2]
            del self._moving[transfer.request.request_id]
            self._scheduler.add(transfer.request)
            arrived.append(transfer)
        while self._waiting:
            seen = (
                self._scheduler.pool.num_free_blocks,
                self._scheduler.num_waiting,
                self._scheduler.num_running,
            )
            if seen == self._refused_at:  # nothing has changed since: do not hash its prompt again
                break
            request_id, (request, keys) = next(iter(self._waiting.items()))
            if not self._start(request, now_s, keys):
                self._refused_at = seen
                break
            del self._waiting[request_id]
        return arrived

    def _start(self, request: GenerateRequest, now_s: float, keys: Keys) -> bool:
        reservation = self._scheduler.reserve(request, keys)
        if reservation is None:
            return False
        num_bytes = self._cost.num_bytes(request, reservation, self._scheduler.config.block_size)
        transfer = Transfer(request=request, num_bytes=num_bytes, duration_s=num_bytes / self._bytes_per_s)
        self._moving[request.request_id] = transfer
        heapq.heappush(self._arrivals, (now_s + transfer.duration_s, next(self._order), transfer))
        return True

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up."""
        assert not self._waiting.keys() & self._moving.keys(), "a request waits and moves"
        for request_id in self._moving:
            assert self._scheduler.state_of(request_id) is SequenceState.RESERVED, (
                f"{request_id} lost its blocks"
            )
        on_heap = {id(transfer) for _, _, transfer in self._arrivals}
        assert {id(transfer) for transfer in self._moving.values()} <= on_heap, "a transfer never arrives"
