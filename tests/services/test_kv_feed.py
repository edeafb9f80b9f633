"""From an engine's KV events to a frontend's index, over real connections."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

import dynamo_sdk
from dynamo_sdk.engines.mocker.config import MockerConfig
from dynamo_sdk.engines.mocker.engine import MockerEngine
from dynamo_sdk.interfaces import EngineSetup, Overlap
from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.kv.snapshot_parts import MAX_PART_BYTES
from dynamo_sdk.runtime.clock import ManualClock, SystemClock, settle
from dynamo_sdk.runtime.network import SocketNetwork
from dynamo_sdk.services.kv_feed import FEED_RETRY_S, MAX_FEED_RETRY_S, KVFeed
from dynamo_sdk.testing import generate_request
from dynamo_sdk.types import (
    BlocksRemoved,
    BlocksStored,
    FinishReason,
    KVDigest,
    KVEvent,
    KVEventBatch,
    KVTransferParams,
    ModelSpec,
    Role,
    WorkerId,
)

from .kv_line import BLOCK, Line, Talker, memory_line

pytestmark = pytest.mark.anyio

DEMO_MODEL = Path(dynamo_sdk.__file__).parent / "demo_model"
WORKER = WorkerId("w")


async def test_a_feed_starts_with_what_is_there_and_follows_each_rank() -> None:
    async with memory_line() as line:
        engine = Talker()
        engine.store(0, 1, 2)
        await line.add(WORKER, engine, "memory:w")
        assert not engine.listeners, "nobody has asked yet"
        line.feed.follow(WORKER, line.client, (5, 6))
        line.feed.follow(WORKER, line.client, (5, 6))
        await settle()
        assert line.depth() == {5: Overlap(device_blocks=3)}
        engine.store(3)
        engine.store(0, rank=1)
        engine.remove(2)
        await settle()
        assert line.depth() == {5: Overlap(device_blocks=2), 6: Overlap(device_blocks=1)}
        found = line.feed.statistics()[WORKER]
        assert found.is_live
        assert found.publishes
        assert (found.num_snapshots, found.num_batches, found.num_gaps) == (2, 5, 0)
        assert found.last_batch_at_s == line.clock.now_s()
        assert len(engine.listeners) == 1


async def test_a_broken_connection_is_caught_up_without_a_snapshot() -> None:
    async with memory_line() as line:
        engine = Talker()
        await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        engine.store(0)
        await settle()
        (await line.client.connections.to(WORKER, None)).close_soon()
        await settle()
        engine.store(1, 2)
        assert not line.feed.statistics()[WORKER].is_live
        assert line.depth() == {0: Overlap(device_blocks=1)}, "what was known stays"
        assert isinstance(line.clock, ManualClock)
        await line.clock.advance(FEED_RETRY_S)
        await settle()
        assert line.depth() == {0: Overlap(device_blocks=3)}
        found = line.feed.statistics()[WORKER]
        assert found.is_live
        assert (found.num_snapshots, found.num_breaks) == (2, 1)


async def test_a_batch_that_the_engine_lost_costs_a_snapshot() -> None:
    async with memory_line() as line:
        engine = Talker()
        await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        engine.store(0, 1, 2)
        await settle()
        engine.held[0] = [0]
        engine.numbers[0] += 1
        engine.store(1)
        await settle()
        assert line.depth() == {0: Overlap(device_blocks=2)}
        found = line.feed.statistics()[WORKER]
        assert (found.num_snapshots, found.num_gaps, found.is_live) == (3, 0, True)


async def test_a_batch_that_is_lost_on_the_way_costs_a_new_call() -> None:
    async with memory_line() as line:
        engine = Talker()
        teller = await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        teller.drops = True
        engine.store(0)
        await settle()
        teller.drops = False
        engine.store(1)
        await settle()
        assert line.depth() == {0: Overlap(device_blocks=2)}
        found = line.feed.statistics()[WORKER]
        assert (found.num_snapshots, found.num_gaps, found.is_live) == (3, 1, True)
        assert teller.num_calls == 2


async def test_a_worker_whose_batches_never_follow_is_asked_less_and_less_often() -> None:
    """Each call brings a snapshot and then a batch that does not follow it."""
    async with memory_line() as line:
        engine = Talker()
        engine.store(0)
        teller = await line.add(WORKER, engine, "memory:w")
        teller.skips = True
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        assert teller.num_calls == 2, "the first time at once"
        assert isinstance(line.clock, ManualClock)
        for number, times in enumerate((1, 2, 4, 8, 16, 16), start=2):
            await line.clock.advance((times - 0.1) * FEED_RETRY_S)
            assert teller.num_calls == number
            await line.clock.advance(0.1 * FEED_RETRY_S)
            assert teller.num_calls == number + 1
        teller.skips = False
        await line.clock.advance(MAX_FEED_RETRY_S)
        assert line.feed.statistics()[WORKER].is_live
        assert line.depth() == {0: Overlap(device_blocks=1)}


async def test_an_engine_that_counts_from_the_beginning_again_costs_a_snapshot() -> None:
    async with memory_line() as line:
        engine = Talker()
        await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        for block in range(4):
            engine.store(block)
        await settle()
        assert line.depth() == {0: Overlap(device_blocks=4)}
        engine.held[0], engine.numbers[0] = [], -1
        engine.store(0)
        await settle()
        assert line.depth() == {0: Overlap(device_blocks=1)}
        engine.store(1)
        await settle()
        assert line.depth() == {0: Overlap(device_blocks=2)}
        found = line.feed.statistics()[WORKER]
        assert (found.num_snapshots, found.num_gaps, found.is_live) == (3, 0, True)


async def test_a_snapshot_larger_than_a_frame_should_be_comes_in_parts() -> None:
    num_blocks = 2 * MAX_PART_BYTES // 16
    async with memory_line() as line:
        engine = Talker()
        event = BlocksStored(
            block_hashes=tuple(range(num_blocks)),
            parent_hash=None,
            token_ids=tuple(range(num_blocks)),
            block_size=1,
        )
        engine.kv_snapshot = lambda: (KVEventBatch(sequence=4, dp_rank=0, events=(event,)),)  # type: ignore[method-assign]
        await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0,))
        await settle()
        found = line.feed.statistics()[WORKER]
        assert (found.num_snapshots, found.num_batches, found.is_live) == (1, 3, True)
        assert line.index.num_held(0) == num_blocks


async def test_a_worker_without_events_is_asked_once() -> None:
    async with memory_line() as line:
        teller = await line.add(WORKER, None, "memory:w")
        line.feed.follow(WORKER, line.client, (0,))
        await settle()
        assert isinstance(line.clock, ManualClock)
        await line.clock.advance(10 * FEED_RETRY_S)
        assert teller.num_calls == 1
        found = line.feed.statistics()[WORKER]
        assert not found.publishes
        assert not found.is_live


async def test_a_bug_costs_a_snapshot_and_not_the_feed() -> None:
    def fail(rank: int, event: KVDigest) -> None:
        line.feed.listen(WORKER, None)
        raise RuntimeError("planted")

    async with memory_line() as line:
        engine = Talker()
        await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        line.feed.listen(WORKER, fail)
        engine.store(0, 1)
        await settle()
        assert not line.feed.statistics()[WORKER].is_live
        assert isinstance(line.clock, ManualClock)
        await line.clock.advance(FEED_RETRY_S)
        await settle()
        assert line.feed.statistics()[WORKER].is_live
        assert line.depth() == {0: Overlap(device_blocks=2)}


async def test_nothing_reaches_seats_of_a_worker_that_is_not_followed_any_more() -> None:
    async with memory_line() as line:
        engine = Talker()
        await line.add(WORKER, engine, "memory:w")
        line.feed.follow(WORKER, line.client, (0, 1))
        await settle()
        engine.store(0, 1, 2)
        line.feed.unfollow(WORKER)
        line.index.drop(0)
        await settle()
        assert line.depth() == {}
        assert line.feed.statistics() == {}
        line.feed.unfollow(WORKER)


async def test_mockers_over_sockets_are_followed_to_the_block(tmp_path: Path) -> None:
    """Prefill and decode workers with two ranks and few blocks each, so that they evict: in the end the index
    holds what the engines hold, also for a frontend that comes late."""
    config = MockerConfig(
        block_size=BLOCK, num_blocks=40, max_num_batched_tokens=512, dp_size=2, speedup_ratio=1e6
    )
    engines: dict[str, MockerEngine] = {}
    seen: list[type[KVEvent]] = []
    async with AsyncExitStack() as stack, Line(SocketNetwork(), SystemClock()) as line:
        for name, role in (("prefill", Role.PREFILL), ("decode", Role.DECODE)):
            setup = EngineSetup(model=ModelSpec(name="m", path=str(DEMO_MODEL)), role=role)
            engine = engines[name] = MockerEngine(setup, config)
            await engine.start()
            stack.push_async_callback(engine.close)
            engine.subscribe_kv_events(lambda batch: seen.extend(type(event) for event in batch.events))
            await line.add(WorkerId(name), engine, f"unix:{tmp_path}/{name}")
        line.feed.follow(WorkerId("prefill"), line.client, (0, 1))
        line.feed.follow(WorkerId("decode"), line.client, (2, 3))
        late = KVFeed(PrefixIndex(), line.clock)
        stack.push_async_callback(late.close)
        for turn in range(4):
            await asyncio.gather(*(disaggregated(engines, conversation, turn) for conversation in range(6)))
            if turn == 1:
                late.follow(WorkerId("prefill"), line.client, (0, 1))
                late.follow(WorkerId("decode"), line.client, (2, 3))
        expected = {
            2 * place + batch.dp_rank: sum(
                len(event.block_hashes) for event in batch.events if isinstance(event, BlocksStored)
            )
            for place, engine in enumerate(engines.values())
            for batch in engine.kv_snapshot()
        }
        assert all(expected.values())
        assert BlocksRemoved in seen
        with anyio.fail_after(10):
            for feed in (line.feed, late):
                while {seat: feed.index.num_held(seat) for seat in expected} != expected:
                    await checkpoint()
        for feed in (line.feed, late):
            feed.index.check_integrity()
            for found in feed.statistics().values():
                assert found.is_live
                assert found.num_misfits == found.num_gaps == found.num_duplicates == 0
        assert line.feed.index.statistics().num_entries == sum(expected.values())


async def disaggregated(engines: dict[str, MockerEngine], conversation: int, turn: int) -> None:
    """One request through both: the prompt grows by turns."""
    prompt = [conversation % 2, conversation, *range(1000, 1020 + 8 * turn)]
    ticket: KVTransferParams | None = None
    for name, role in (("prefill", Role.PREFILL), ("decode", Role.DECODE)):
        leg = msgspec.structs.replace(generate_request(prompt, role=role), kv_transfer=ticket)
        async with aclosing(engines[name].generate(leg)) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason is FinishReason.HANDOVER:
                    ticket = chunk.kv_transfer
