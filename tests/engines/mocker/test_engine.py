"""The core on a clock: real engine, virtual seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dynamo_sdk.engines.mocker import MockerConfig
from dynamo_sdk.engines.mocker.engine import MockerEngine
from dynamo_sdk.engines.mocker.rank import MAX_LAG_S
from dynamo_sdk.engines.stateless import TICKET
from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest, Overloaded, TicketUnknown
from dynamo_sdk.interfaces import EngineSetup, KVStore, KVTierSetup
from dynamo_sdk.runtime.clock import ManualClock, TimerHandle
from dynamo_sdk.types import (
    BlocksStored,
    FinishReason,
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    KVTier,
    KVTransferParams,
    ModelSpec,
    PackedTokens,
    Role,
    SamplingParams,
)
from dynamo_sdk.types.plan import KVTierPlan

from .virtual import ask, decode_leg, decode_ms, new_core, prefill_ms, prompt, run

pytestmark = pytest.mark.anyio


def new_engine(clock: ManualClock, **settings: object) -> MockerEngine:
    setup = EngineSetup(model=ModelSpec(name="m", path="."), role=Role.AGGREGATED)
    return MockerEngine(setup, MockerConfig(**settings), clock=clock)  # type: ignore[arg-type]


async def started(clock: ManualClock, **settings: object) -> MockerEngine:
    engine = new_engine(clock, **settings)
    await engine.start()
    return engine


class Reader:
    """Reads one stream in a task, and notes by the clock when each chunk came."""

    def __init__(self, engine: MockerEngine, clock: ManualClock, request: GenerateRequest) -> None:
        self.chunks: list[tuple[float, GenerateChunk]] = []
        self.task = asyncio.create_task(self._read(engine, clock, request))

    async def _read(self, engine: MockerEngine, clock: ManualClock, request: GenerateRequest) -> None:
        async for chunk in engine.generate(request):
            self.chunks.append((clock.now_s() * 1e3, chunk))

    @property
    def token_ms(self) -> list[float]:
        return [at_ms for at_ms, _ in self.chunks]

    @property
    def last(self) -> GenerateChunk:
        return self.chunks[-1][1]


async def test_tokens_come_when_the_formula_says() -> None:
    clock = ManualClock()
    engine = await started(clock)
    reader = Reader(engine, clock, ask("a", prompt(512), 4))
    await clock.advance(1.0)
    times = [prefill_ms(512)]
    times += [times[0] + sum(decode_ms(513 + index) for index in range(done)) for done in (1, 2, 3)]
    assert reader.token_ms == pytest.approx(times, abs=1e-6)
    assert [len(chunk.token_ids) for _, chunk in reader.chunks] == [1, 1, 1, 1]
    assert reader.last.finish_reason is FinishReason.LENGTH
    assert reader.last.usage is not None
    assert (reader.last.usage.num_prompt_tokens, reader.last.usage.num_output_tokens) == (512, 4)
    assert reader.last.timing is not None
    assert reader.last.timing.prefill_s == pytest.approx(prefill_ms(512) / 1e3)
    assert reader.last.timing.decode_s == pytest.approx((times[3] - times[0]) / 1e3)
    await engine.close()


async def test_live_and_simulated_are_one() -> None:
    """Requests that arrive together, late, and in each other's steps: the engine keeps the core's times."""
    clock = ManualClock()
    engine = await started(clock, num_blocks=40)
    requests = [(7.0 * number // 3, ask(f"r{number}", prompt(90 * number + 9), 30)) for number in range(9)]
    readers: dict[str, Reader] = {}
    for at_ms, request in requests:
        await clock.advance(at_ms / 1e3 - clock.now_s())
        readers[request.request_id] = Reader(engine, clock, request)
        await clock.advance(0.0)
    await clock.advance(60.0)
    lives = run(new_core(num_blocks=40), requests)
    for name, life in lives.items():
        assert readers[name].token_ms == pytest.approx(life.token_ms, abs=1e-6)
        assert [token for _, chunk in readers[name].chunks for token in chunk.token_ids] == life.token_ids
    engine.check_integrity()
    await engine.close()


class LateClock(ManualClock):
    """A host that is slow to wake up: every callback runs ``late_s`` after it is due."""

    def __init__(self, late_s: float) -> None:
        super().__init__()
        self.late_s = late_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        return super().call_at(max(when_s, self.now_s()) + self.late_s, callback)


async def test_a_late_timer_does_not_add_up() -> None:
    clock = LateClock(0.0001)
    engine = await started(clock)
    reader = Reader(engine, clock, ask("a", prompt(512), 500))
    await clock.advance(20.0)
    ideal_ms = prefill_ms(512) + sum(decode_ms(512 + index) for index in range(1, 500))
    assert len(reader.chunks) == 500
    assert 0 < reader.token_ms[-1] - ideal_ms < 1.0  # a thousand late callbacks, 100 ms of lateness in all
    await engine.close()


async def test_a_stopped_process_does_not_race_to_catch_up() -> None:
    clock = ManualClock()
    engine = await started(clock)
    reader = Reader(engine, clock, ask("a", prompt(512), 200))
    await clock.advance(0.1)
    clock.advance_nowait(0.0)
    num_before = len(reader.chunks)
    clock._now_s += 5.0  # nothing runs meanwhile, as in a debugger
    await clock.advance(0.1)
    assert len(reader.chunks) - num_before < (0.1 + 2 * MAX_LAG_S) * 1e3 / decode_ms(512) + 2
    await clock.advance(60.0)
    assert reader.last.finish_reason is FinishReason.LENGTH
    await engine.close()


async def test_all_tokens_of_a_step_come_in_one_tick() -> None:
    clock = ManualClock()
    engine = await started(clock)
    readers = [Reader(engine, clock, ask(f"r{number}", prompt(64, first=number), 5)) for number in range(30)]
    await clock.advance(1.0)
    assert len({tuple(reader.token_ms) for reader in readers}) == 1
    await engine.close()


async def test_startup_takes_its_time_and_can_be_given_up() -> None:
    clock = ManualClock()
    engine = new_engine(clock, startup_time_s=30.0)
    task = asyncio.create_task(engine.start())
    await clock.advance(29.9)
    assert not task.done()
    await clock.advance(0.2)
    assert (await task).num_blocks == 16384
    other = new_engine(clock, startup_time_s=30.0)
    task = asyncio.create_task(other.start())
    await clock.advance(1.0)
    await other.close()
    await clock.advance(30.0)
    with pytest.raises(EngineStartError, match="closed while it started"):
        await task
    with pytest.raises(EngineFailed, match="closed"):
        await anext(other.generate(ask("a", prompt(5))))


async def test_an_engine_starts_once() -> None:
    engine = await started(ManualClock())
    with pytest.raises(EngineStartError, match="starts once"):
        await engine.start()


async def test_ranks_have_memory_of_their_own() -> None:
    clock = ManualClock()
    engine = new_engine(clock, dp_size=3, num_blocks=20)
    facts = await engine.start()
    assert (facts.dp_size, facts.num_blocks) == (3, 60)
    batches: list[KVEventBatch] = []
    engine.subscribe_kv_events(batches.append)
    for rank in (2, 2, 0, None, None, None):
        Reader(engine, clock, ask(f"r{len(batches)}", prompt(130), 1, dp_rank=rank))
        await clock.advance(1.0)
    assert [batch.dp_rank for batch in batches] == [2, 0, 1]  # what was there already is found, not stored
    assert [batch.sequence for batch in batches] == [0, 0, 0]
    assert [batch.dp_rank for batch in engine.kv_snapshot()] == [0, 1, 2]
    load = engine.load()
    assert load is not None
    assert (load.num_blocks, load.num_free_blocks) == (60, 60)
    with pytest.raises(InvalidRequest, match=r"ranks are 0\.\.2") as caught:
        await anext(engine.generate(ask("x", prompt(5), dp_rank=3)))
    assert caught.value.param == "dp_rank"
    await engine.close()


async def test_ranks_take_turns() -> None:
    clock = ManualClock()
    engine = await started(clock, dp_size=2)
    readers = [Reader(engine, clock, ask(f"r{number}", prompt(512, first=number))) for number in range(4)]
    await clock.advance(1.0)
    assert [reader.token_ms[0] for reader in readers] == pytest.approx([prefill_ms(1024)] * 4)
    await engine.close()


async def test_two_legs() -> None:
    clock = ManualClock()
    prefill, decode = await started(clock), await started(clock, kv_bytes_per_token=64_000_000)
    first = Reader(prefill, clock, ask("a", prompt(100), 3, role=Role.PREFILL))
    await clock.advance(1.0)
    assert (first.last.finish_reason, first.last.kv_transfer) == (FinishReason.HANDOVER, TICKET)
    rest = Reader(decode, clock, decode_leg("a", prompt(100), first.last.token_ids[0], 3))
    await clock.advance(1.0)
    assert rest.token_ms[0] == pytest.approx(1000.0 + 100.0 + decode_ms(101))
    assert rest.last.timing is not None
    assert rest.last.timing.transfer_s == pytest.approx(0.1)
    assert rest.last.timing.transfer_bytes == 6_400_000_000
    assert rest.last.timing.queue_s == pytest.approx(0.0, abs=1e-9)
    for engine in (prefill, decode):
        engine.check_integrity()
        await engine.close()


async def test_leaving_frees_at_once_and_lets_others_in() -> None:
    clock = ManualClock()
    engine = await started(clock, num_blocks=10)
    first = Reader(engine, clock, ask("a", prompt(500), 100))
    await clock.advance(0.05)
    second = Reader(engine, clock, ask("b", prompt(500, first=1), 2))
    await clock.advance(0.05)
    assert not second.chunks
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    load = engine.load()
    assert load is not None
    assert (load.num_running, load.num_free_blocks) == (0, 10)
    engine.check_integrity()
    await clock.advance(1.0)
    assert second.last.finish_reason is FinishReason.LENGTH
    await engine.close()


async def test_leaving_during_a_transfer_frees_its_blocks() -> None:
    clock = ManualClock()
    engine = await started(clock, num_blocks=10)
    reader = Reader(engine, clock, decode_leg("a", prompt(500), 7, 3))
    await clock.advance(0.0)
    assert engine.load().num_free_blocks == 2  # type: ignore[union-attr]
    reader.task.cancel()
    await asyncio.gather(reader.task, return_exceptions=True)
    assert engine.load().num_free_blocks == 10  # type: ignore[union-attr]
    await clock.advance(1.0)
    engine.check_integrity()
    await engine.close()


async def test_an_id_used_again_within_a_step_gets_only_its_own_tokens() -> None:
    clock = ManualClock()
    engine = await started(clock)
    first = Reader(engine, clock, ask("a", prompt(512), 3))
    await clock.advance(0.01)  # its prefill is under way
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    second = Reader(engine, clock, ask("a", prompt(64, first=1), 3))
    await clock.advance(1.0)
    assert not first.chunks
    assert second.token_ms[0] == pytest.approx(prefill_ms(512) + prefill_ms(64))
    assert second.last.usage is not None
    assert (second.last.usage.num_prompt_tokens, second.last.usage.num_output_tokens) == (64, 3)
    await engine.close()


async def test_a_request_counts_as_running_until_its_last_token() -> None:
    clock = ManualClock()
    engine = await started(clock)
    Reader(engine, clock, ask("a", prompt(512), 1))
    await clock.advance(0.02)
    assert engine.load().num_running == 1  # type: ignore[union-attr]
    await clock.advance(0.02)
    assert engine.load().num_running == 0  # type: ignore[union-attr]
    await engine.close()


async def test_full_means_overloaded() -> None:
    clock = ManualClock()
    engine = await started(clock, max_num_waiting=2)
    readers = [Reader(engine, clock, ask(f"r{number}", prompt(5))) for number in range(3)]
    await clock.advance(1.0)
    with pytest.raises(Overloaded, match="2 requests are already waiting"):
        await readers[2].task
    assert [len(reader.chunks) for reader in readers] == [1, 1, 0]
    await engine.close()


async def test_a_broken_timing_model_fails_everybody_and_hangs_nobody() -> None:
    clock = ManualClock()
    engine = await started(clock, timing="tests.engines.mocker.test_core:Backwards")
    reader = Reader(engine, clock, ask("a", prompt(5)))
    await clock.advance(1.0)
    with pytest.raises(EngineFailed, match="Backwards gave -1"):
        await reader.task
    with pytest.raises(EngineFailed, match="Backwards gave -1"):
        await anext(engine.generate(ask("b", prompt(5))))
    await engine.drain()
    await engine.close()


async def test_a_snapshot_within_a_step_continues_the_events() -> None:
    clock = ManualClock()
    engine = await started(clock)
    batches: list[KVEventBatch] = []
    engine.subscribe_kv_events(batches.append)
    Reader(engine, clock, ask("a", prompt(512), 200))
    await clock.advance(0.01)
    (snapshot,) = engine.kv_snapshot()
    assert snapshot.sequence == batches[-1].sequence == 0
    await clock.advance(10.0)
    assert [batch.sequence for batch in batches] == list(range(len(batches)))
    assert len(batches) > 2
    await engine.close()


async def test_metrics_of_each_step_come_at_its_end() -> None:
    clock = ManualClock()
    engine = await started(clock)
    seen: list[tuple[float, ForwardPassMetrics]] = []
    engine.subscribe_metrics(lambda metrics: seen.append((clock.now_s(), metrics)))
    Reader(engine, clock, ask("a", prompt(512), 3))
    await clock.advance(1.0)
    assert [metrics.num_prefill_tokens for _, metrics in seen] == [512, 0, 0]
    assert all(now_s == pytest.approx(metrics.at_s) for now_s, metrics in seen)
    await engine.close()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (
            ask("a", prompt(5), 1, kv_transfer=KVTransferParams(connector="direct", payload=b"?")),
            TicketUnknown,
        ),
        (
            GenerateRequest(
                request_id="torn",
                model="m",
                prompt=PackedTokens(b"abcde"),
                sampling=SamplingParams(max_tokens=1),
            ),
            InvalidRequest,
        ),
        (ask("a", []), InvalidRequest),
        (ask("a", prompt(5), 0), InvalidRequest),
    ],
)
async def test_bad_requests_are_refused_and_hold_nothing(
    request_: GenerateRequest, error: type[Exception]
) -> None:
    engine = await started(ManualClock())
    with pytest.raises(error):
        await anext(engine.generate(request_))
    await engine.drain()
    engine.check_integrity()


async def test_a_source_gives_what_the_generator_gives_in_the_tick_in_which_it_is_there() -> None:
    clock = ManualClock()
    engine = await started(clock)
    reader = Reader(engine, clock, ask("a", prompt(512), 4))
    await clock.advance(1.0)
    start_ms = clock.now_s() * 1e3
    source = engine.open(ask("b", prompt(512, first=1), 4))
    taken: list[tuple[float, GenerateChunk | None]] = []
    source.listen(lambda: taken.append((clock.now_s() * 1e3 - start_ms, source.take())))
    assert source.take() is None
    clock.advance_nowait(1.0)
    assert [at_ms for at_ms, _ in taken] == pytest.approx(reader.token_ms)
    assert [chunk for _, chunk in taken if chunk is not None][-1].usage == reader.last.usage
    assert source.is_over
    source.close()
    await engine.drain()


async def test_a_source_that_is_left_merges_its_tokens_and_gives_its_blocks_back_when_closed() -> None:
    clock = ManualClock()
    engine = await started(clock)
    source = engine.open(ask("a", prompt(512), 1000))
    await clock.advance(1.0)
    chunk = source.take()
    assert chunk is not None
    assert len(chunk.token_ids) > 10
    source.close()
    source.close()
    load = engine.load()
    assert load is not None
    assert (load.num_running, load.num_free_blocks) == (0, load.num_blocks)
    engine.check_integrity()
    await engine.drain()
    with pytest.raises(InvalidRequest):
        engine.open(ask("b", []))


async def test_a_source_whose_reader_leaves_at_its_last_token_disturbs_no_step() -> None:
    clock = ManualClock()
    engine = await started(clock)
    source = engine.open(ask("a", prompt(64), 2))
    other = Reader(engine, clock, ask("b", prompt(64, first=1), 5))

    def read() -> None:
        source.take()
        if source.is_over:
            source.close()

    source.listen(read)
    await clock.advance(1.0)
    times = [prefill_ms(128)]
    for lengths in ((65, 65), (66,), (67,), (68,)):
        times.append(times[-1] + decode_ms(sum(lengths)))
    assert other.token_ms == pytest.approx(times, abs=1e-6)
    engine.check_integrity()


async def test_tiers_of_the_graph_are_kept_and_shown() -> None:
    """Of two prompts that do not fit together the first comes back from host memory."""
    clock = ManualClock()
    plan = KVTierPlan(name="ram", kind="ram", capacity_bytes=64 * 64 * 131_072)

    def build(block_bytes: int) -> KVStore:
        raise AssertionError("no bytes, no store")

    setup = EngineSetup(
        model=ModelSpec(name="m", path="."),
        role=Role.AGGREGATED,
        kv_tiers=(KVTierSetup(name="ram", tier=KVTier.HOST, plan=plan, build=build),),
    )
    engine = MockerEngine(setup, MockerConfig(num_blocks=30), clock=clock)
    await engine.start()
    batches: list[KVEventBatch] = []
    engine.subscribe_kv_events(batches.append)
    readers = []
    for number, first in enumerate((1, 2, 3, 1, 2)):
        readers.append(Reader(engine, clock, ask(f"r{number}", prompt(1000, first=first))))
        await clock.advance(10.0)
    (ram,) = engine.kv_tier_statistics().tiers
    assert (ram.counts.num_onboarded_blocks, ram.store.num_blocks) == (15, 45)
    assert engine.kv_tier_statistics().num_decisions == {"load": 1, "recompute": 0, "unmeasured": 1}
    last = readers[-1].chunks[-1][1]
    assert last.usage is not None
    assert last.usage.num_cached_tokens == 960
    assert last.timing is not None
    assert last.timing.transfer_bytes == 15 * 64 * 131_072
    assert last.timing.transfer_s == pytest.approx(15 * 64 * 131_072 / 25e9 + 2e-5)
    events = [event for batch in batches for event in batch.events]
    in_ram = [event for event in events if isinstance(event, BlocksStored) and event.tier is KVTier.HOST]
    assert sum(len(event.block_hashes) for event in in_ram) == 45
    await engine.close()
