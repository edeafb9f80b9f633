"""Load feeds follow the fleet, come back after a break, and end with their pools."""

from __future__ import annotations

import asyncio

import pytest

from dynamo_sdk.interfaces import Candidate, Freed, Routed
from dynamo_sdk.runtime.clock import settle
from dynamo_sdk.services.pools import FEED_RETRY_S
from dynamo_sdk.types import Role, WorkerId

from .fleet import Fleet

pytestmark = pytest.mark.anyio


async def candidate(fleet: Fleet) -> Candidate:
    await settle()
    [found] = fleet.pools.candidates(fleet.pools.workers("m", Role.AGGREGATED))
    return found


async def test_a_broken_feed_comes_back() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)
        assert (await candidate(fleet)).load is not None
        (
            await fleet.pools.client_of(fleet.pools.all_workers()[0]).connections.to(WorkerId("w"), None)
        ).close_soon()
        assert (await candidate(fleet)).load is None, "old news is worse than none"
        await fleet.clock.advance(FEED_RETRY_S)
        assert (await candidate(fleet)).load is not None


async def test_own_requests_are_counted_and_nothing_else_is_kept() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)
        worker = WorkerId("w")
        assert (await candidate(fleet)).num_active_requests == 0
        fleet.pools.observe(Routed(request_id="r", worker_id=worker, role=Role.AGGREGATED, num_tokens=3), 0.0)
        assert (await candidate(fleet)).num_active_requests == 1
        fleet.pools.observe(Freed(request_id="r", worker_id=worker), 1.0)
        assert (await candidate(fleet)).num_active_requests == 0
        fleet.pools.book.check_integrity()


async def test_closed_pools_start_no_feeds() -> None:
    async with Fleet() as fleet:
        await fleet.pools.close()
        before = asyncio.all_tasks()
        await fleet.add("w", Role.AGGREGATED)
        await settle()
        names = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}  # type: ignore[union-attr]
        assert "Pools._read_loads" not in names
        await fleet.pools.close()


async def test_everybody_who_listens_is_told_of_news_also_of_silence() -> None:
    async with Fleet() as fleet:
        told: list[str] = []
        ends = [fleet.pools.on_news(lambda name=name: told.append(name)) for name in "ab"]  # type: ignore[misc]
        await fleet.add("w", Role.AGGREGATED)
        await settle()
        assert set(told) == {"a", "b"}
        for end in (ends[0], ends[0]):
            end()
        told.clear()
        (
            await fleet.pools.client_of(fleet.pools.all_workers()[0]).connections.to(WorkerId("w"), None)
        ).close_soon()
        assert (await candidate(fleet)).load is None
        assert told == ["b"], "what others have sent there is not known any more"
