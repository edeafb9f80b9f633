"""The queue for block reservations, without an engine."""

from __future__ import annotations

import asyncio

import pytest

from dynamo_sdk.engines.torch.reservations import ReservationQueue
from dynamo_sdk.errors import EngineFailed, InvalidRequest
from dynamo_sdk.interfaces import BlockReservation
from dynamo_sdk.types import GenerateRequest

from .running import a_request

pytestmark = pytest.mark.anyio


class Memory:
    """Room for ``num_free`` requests; ``reserved`` are the ids that have it."""

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free
        self.reserved: list[str] = []
        self.queue = ReservationQueue(self.reserve, self.release)

    def reserve(self, request: GenerateRequest) -> BlockReservation | None:
        if request.request_id == "too long":
            raise InvalidRequest("too long")
        if not self.num_free:
            return None
        self.num_free -= 1
        self.reserved.append(request.request_id)
        return BlockReservation(block_ids=(1,), num_cached_blocks=0)

    def release(self, request_id: str) -> None:
        self.reserved.remove(request_id)
        self.num_free += 1

    async def waiting(self, request_id: str) -> asyncio.Task[BlockReservation]:
        task = asyncio.create_task(self.queue.wait(a_request([1], request_id=request_id)))
        await asyncio.sleep(0)
        return task


async def test_first_come_first_served() -> None:
    memory = Memory(1)
    a, b, c = [await memory.waiting(name) for name in "abc"]
    await a
    memory.num_free = 1
    assert memory.reserved == ["a"]
    d = await memory.waiting("d")
    assert memory.reserved == ["a"], "a newcomer must not overtake those who wait"
    memory.queue.grant()
    await b
    assert memory.reserved == ["a", "b"]
    memory.num_free = 9
    memory.queue.grant()
    await asyncio.gather(c, d)
    assert memory.reserved == ["a", "b", "c", "d"]
    assert len(memory.queue) == 0


async def test_cancelled_while_waiting() -> None:
    memory = Memory(0)
    a, b = [await memory.waiting(name) for name in "ab"]
    a.cancel()
    await asyncio.wait([a])
    memory.num_free = 1
    memory.queue.grant()
    await b
    assert memory.reserved == ["b"]


async def test_cancelled_in_the_tick_of_the_grant() -> None:
    memory = Memory(0)
    a = await memory.waiting("a")
    memory.num_free = 1
    memory.queue.grant()
    assert memory.reserved == ["a"]
    a.cancel()
    with pytest.raises(asyncio.CancelledError):
        await a
    assert memory.reserved == []


async def test_errors_reach_those_who_wait() -> None:
    memory = Memory(0)
    ahead, hopeless, behind = [await memory.waiting(name) for name in ("a", "too long", "b")]
    memory.num_free = 2
    memory.queue.grant()
    await ahead
    with pytest.raises(InvalidRequest):
        await hopeless
    await behind
    late = await memory.waiting("c")
    memory.queue.fail("closed")
    with pytest.raises(EngineFailed, match="closed"):
        await late
