"""Tiers below the device: whatever they do, the tokens are those of computing everything."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import BlockOffer, CacheKey
from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.runtime.clock import settle
from dynamo_sdk.stores import DiskStore, DiskStoreConfig
from dynamo_sdk.stores.block_file import OsBlockFile
from dynamo_sdk.types import KVEventBatch, KVTier, SamplingParams, pack_tokens

from .models import random_prompt
from .running import a_request, answer, answer_all, assert_all_free, running_engine
from .tiers import BLOCK_SIZE, MANY_BYTES, DictStore, TieredEngine, disk, ram, tier, tiered_engine

pytestmark = pytest.mark.anyio

PROMPTS = [random_prompt(seed, length) for seed, length in enumerate((41, 64, 23, 90))]
PROMPTS.append(PROMPTS[1][:40] + random_prompt(9, 30))
SAMPLING = SamplingParams(max_tokens=12, temperature=0.8, seed=5, repetition_penalty=1.1)


@pytest.fixture
async def expected(llama: Path) -> list[list[int]]:
    async with running_engine(llama, enable_prefix_caching=False) as plain:
        return await answer_all(plain, PROMPTS, SAMPLING)


async def offloaded(engine: TieredEngine) -> None:
    """Everything went down that was to, and the device has forgotten it."""
    await engine.tiers.wait_idle()
    engine.forget_device()


def blocks_of(engine: TieredEngine, name: str) -> Any:
    return next(each for each in engine.kv_tier_statistics().tiers if each.name == name)


async def ask_twice(engine: TieredEngine, expected: list[list[int]]) -> None:
    """Compute, bring down, forget, ask again."""
    assert await answer_all(engine, PROMPTS, SAMPLING) == expected
    await offloaded(engine)
    assert await answer_all(engine, PROMPTS, SAMPLING) == expected


async def test_from_ram(llama: Path, expected: list[list[int]]) -> None:
    async with tiered_engine(llama, ram()) as engine:
        await ask_twice(engine, expected)
        facts = blocks_of(engine, "ram")
        # All full blocks of the prompts but those with the last token; the fifth shares ten with the second.
        num_blocks = sum((len(prompt) - 1) // BLOCK_SIZE for prompt in PROMPTS)
        assert facts.counts.num_onboarded_blocks in (num_blocks, num_blocks - 10)
        assert facts.counts.num_hit_blocks <= facts.counts.num_lookup_blocks
        assert (
            facts.counts.onboarded_bytes
            == facts.counts.num_onboarded_blocks * engine.block_memory.layout.block_bytes
        )
        found = await answer(engine, a_request(PROMPTS[0], SAMPLING, request_id="again"))
        assert found.last.usage is not None
        assert found.last.usage.num_cached_tokens == 40
        assert_all_free(engine)


async def test_from_disk_and_after_a_restart(llama: Path, tmp_path: Path, expected: list[list[int]]) -> None:
    async with tiered_engine(llama, disk(tmp_path)) as engine:
        await ask_twice(engine, expected)
        assert blocks_of(engine, "disk").counts.num_onboarded_blocks > 30
    async with tiered_engine(llama, disk(tmp_path)) as engine:
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        facts = blocks_of(engine, "disk")
        assert facts.counts.num_onboarded_blocks > 30
        assert facts.counts.num_offloaded_blocks_from_device < 10


async def test_from_several_tiers_in_one_go(llama: Path, tmp_path: Path, expected: list[list[int]]) -> None:
    """RAM lost the middle of every prompt; the disk has it."""
    async with tiered_engine(llama, ram(), disk(tmp_path)) as engine:
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        await engine.tiers.wait_idle()
        store = engine.tiers.tiers[0].store
        keys = list(engine.tiers._contents._tiers[0].held)
        await store.delete(keys[3:30])
        engine.forget_device()
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        assert blocks_of(engine, "ram").counts.num_onboarded_blocks > 5
        assert blocks_of(engine, "disk").counts.num_onboarded_blocks > 5


async def test_a_device_too_small_for_all_goes_on_with_tiers(llama: Path, expected: list[list[int]]) -> None:
    """So little memory that requests wait, are preempted and evict each other's prefixes, again and again."""
    async with tiered_engine(llama, ram(), num_blocks=40) as engine:
        for _ in range(4):
            assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        assert blocks_of(engine, "ram").counts.num_onboarded_blocks > 20
        assert_all_free(engine)


async def test_what_is_asked_for_twice_goes_to_the_disk(llama: Path, tmp_path: Path) -> None:
    async with tiered_engine(llama, ram(), disk(tmp_path, min_uses=2)) as engine:
        await answer(engine, a_request(PROMPTS[0]))
        await answer(engine, a_request(PROMPTS[1]))
        await engine.tiers.wait_idle()
        assert blocks_of(engine, "disk").store.num_blocks == 0
        await offloaded(engine)
        await answer(engine, a_request(PROMPTS[1], request_id="again"))
        await engine.tiers.wait_idle()
        facts = blocks_of(engine, "disk")
        assert facts.store.num_blocks == 15
        assert (
            facts.counts.num_offloaded_blocks_from_tiers + facts.counts.num_offloaded_blocks_from_device == 15
        )
        assert facts.num_refused_blocks["rare"] > 0


async def test_only_what_matters_goes_down(llama: Path) -> None:
    async with tiered_engine(llama, ram(min_priority=1)) as engine:
        await answer(engine, a_request(PROMPTS[0]))
        await answer(engine, a_request(PROMPTS[1], priority=-1))
        await engine.tiers.wait_idle()
        facts = blocks_of(engine, "ram")
        assert facts.store.num_blocks == (64 + 15) // BLOCK_SIZE
        assert facts.num_refused_blocks == {"priority": (41 + 15) // BLOCK_SIZE}


async def test_two_tenants_do_not_share(llama: Path) -> None:
    async with tiered_engine(llama, ram()) as engine:
        await answer(engine, a_request(PROMPTS[0], cache_salt="one"))
        await offloaded(engine)
        other = await answer(engine, a_request(PROMPTS[0], cache_salt="two"))
        assert other.last.usage is not None
        assert other.last.usage.num_cached_tokens == 0
        same = await answer(engine, a_request(PROMPTS[0], cache_salt="one"))
        assert same.last.usage is not None
        assert same.last.usage.num_cached_tokens == 40


async def test_another_model_finds_nothing(
    folders: dict[str, Path], tmp_path: Path, expected: list[list[int]]
) -> None:
    async with tiered_engine(folders["qwen2"], disk(tmp_path)) as engine:
        await answer_all(engine, PROMPTS, SAMPLING)
        await engine.tiers.wait_idle()
        assert blocks_of(engine, "disk").store.num_blocks > 30
    async with tiered_engine(folders["llama"], disk(tmp_path)) as engine:
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        assert blocks_of(engine, "disk").counts.num_onboarded_blocks == 0


# -- stores that misbehave


class Forgetful(DictStore):
    """Has everything, it says, and then nothing."""

    async def get(self, key: CacheKey) -> bytes | None:
        return None


class Holey(DictStore):
    """Every third block is lost between the question and the answer."""

    num_asked = 0

    async def get(self, key: CacheKey) -> bytes | None:
        self.num_asked += 1
        return None if self.num_asked % 3 == 0 else await super().get(key)


class Raising(DictStore):
    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return [True for _ in keys]

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        raise OSError(errno.EIO, "broken")

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        raise RuntimeError("broken, too")


class Boastful(DictStore):
    """Says that it has more than it was asked for."""

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        return len(keys) + 7


@pytest.mark.parametrize("store", [Forgetful, Holey, Raising, Boastful, DictStore])
async def test_a_store_of_ones_own(llama: Path, expected: list[list[int]], store: type[DictStore]) -> None:
    async with tiered_engine(llama, tier("own", lambda _: store(), capacity_bytes=None)) as engine:
        for _ in range(2):
            await ask_twice(engine, expected)
        facts = blocks_of(engine, "own")
        assert (facts.counts.num_onboarded_blocks > 0) == (store in (Holey, Boastful, DictStore))
        assert (facts.counts.num_failures > 0) == (store is Raising)
        if store is DictStore:  # it says nothing of itself, but can be asked what need not be copied again
            assert facts.num_refused_blocks["present"] > 50
            assert facts.counts.num_offloaded_blocks_from_device == facts.store.num_blocks
        assert_all_free(engine)


async def test_a_store_that_raises_is_one_line_in_the_log(
    llama: Path, expected: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    async with tiered_engine(llama, tier("own", lambda _: Raising(), capacity_bytes=None)) as engine:
        await ask_twice(engine, expected)
    lines = [record.getMessage() for record in caplog.records if "own" in record.getMessage()]
    assert len(lines) == 1


async def test_a_corrupt_disk(llama: Path, tmp_path: Path, expected: list[list[int]]) -> None:
    async with tiered_engine(llama, disk(tmp_path)) as engine:
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        await engine.tiers.wait_idle()
    blocks = tmp_path / "blocks"
    damaged = bytearray(blocks.read_bytes())
    for place in range(100, len(damaged), 4096 * 3):
        damaged[place] ^= 0xFF
    blocks.write_bytes(damaged)
    async with tiered_engine(llama, disk(tmp_path)) as engine:
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected
        facts = blocks_of(engine, "disk")
        assert facts.store.num_failures > 0
        assert facts.counts.num_failures == facts.store.num_failures


class FullFile(OsBlockFile):
    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")


async def test_a_full_disk(llama: Path, tmp_path: Path, expected: list[list[int]]) -> None:
    def build(block_bytes: int) -> DiskStore:
        config = DiskStoreConfig(block_bytes=block_bytes, capacity_bytes=MANY_BYTES, path=tmp_path)
        return DiskStore(config, open_file=lambda path, direct: FullFile(path, wants_direct=direct))

    async with tiered_engine(llama, tier("disk", build, kind=KVTier.DISK)) as engine:
        await ask_twice(engine, expected)
        facts = blocks_of(engine, "disk")
        assert facts.store.num_blocks == 0
        assert facts.counts.num_failures > 0


class Stuck(DictStore):
    """Answers reads only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def get(self, key: CacheKey) -> bytes | None:
        self.asked.set()
        await self.may_answer.wait()
        return await super().get(key)


async def test_others_go_on_while_one_loads_and_it_counts_as_waiting(
    llama: Path, expected: list[list[int]]
) -> None:
    store = Stuck()
    async with tiered_engine(llama, tier("own", lambda _: store, capacity_bytes=None)) as engine:
        assert await answer_all(engine, PROMPTS[:1], SAMPLING) == expected[:1]
        await offloaded(engine)
        loading = asyncio.create_task(answer(engine, a_request(PROMPTS[0], SAMPLING, request_id="loading")))
        await store.asked.wait()
        other = await answer(engine, a_request(PROMPTS[2], SAMPLING, request_id="other"))
        assert other.token_ids == expected[2]
        load = engine.load()
        assert load is not None
        assert (load.num_running, load.num_waiting) == (0, 1)
        store.may_answer.set()
        found = await loading
        assert found.token_ids == expected[0]
        assert found.last.timing is not None
        assert found.last.timing.transfer_bytes == 10 * engine.block_memory.layout.block_bytes


async def test_draining_waits_for_whoever_asks_the_tiers(llama: Path) -> None:
    class Thinking(DictStore):
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
            self.asked.set()
            await self.may_answer.wait()
            return 0

    store = Thinking()
    async with tiered_engine(llama, tier("own", lambda _: store, capacity_bytes=None)) as engine:
        asking = asyncio.create_task(answer(engine, a_request(PROMPTS[0])))
        await store.asked.wait()
        draining = asyncio.create_task(engine.drain())
        await settle()
        assert not draining.done()
        store.may_answer.set()
        await draining
        await asking
        assert_all_free(engine)


async def test_a_client_that_leaves_while_its_prefix_loads(llama: Path, expected: list[list[int]]) -> None:
    store = Stuck()
    async with tiered_engine(llama, tier("own", lambda _: store, capacity_bytes=None)) as engine:
        assert await answer_all(engine, PROMPTS[:1], SAMPLING) == expected[:1]
        await offloaded(engine)

        async def read() -> None:
            async with aclosing(engine.generate(a_request(PROMPTS[0], SAMPLING))) as chunks:
                async for _ in chunks:
                    pass

        reading = asyncio.create_task(read())
        await store.asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert_all_free(engine)
        store.may_answer.set()
        assert await answer_all(engine, PROMPTS, SAMPLING) == expected


async def test_an_engine_that_closes_while_somebody_loads(llama: Path) -> None:
    store = Stuck()
    async with tiered_engine(llama, tier("own", lambda _: store, capacity_bytes=None)) as engine:
        await answer(engine, a_request(PROMPTS[0]))
        await offloaded(engine)
        loading = asyncio.create_task(answer(engine, a_request(PROMPTS[0])))
        await store.asked.wait()
        await engine.close()
        with pytest.raises(Exception, match="closed"):
            await loading


# -- what is said of it


async def test_an_index_that_follows_sees_all_tiers(llama: Path) -> None:
    async with tiered_engine(llama, ram()) as engine:
        await answer(engine, a_request(PROMPTS[1]))
        await engine.tiers.wait_idle()
        index = PrefixIndex()
        batches: list[KVEventBatch] = []
        engine.subscribe_kv_events(batches.append)
        (snapshot,) = engine.kv_snapshot()
        for event in snapshot.events:
            assert index.apply(0, event)
        await answer(engine, a_request(PROMPTS[0]))
        await engine.tiers.wait_idle()
        for _ in range(6):  # the device is too small for all these
            await answer(engine, a_request(random_prompt(50 + len(batches), 100)))
        await engine.tiers.wait_idle()
        await answer(engine, a_request(PROMPTS[2]))
        await engine.tiers.wait_idle()
        for batch in batches:
            for event in batch.events:
                assert index.apply(0, event)
        assert [batch.sequence for batch in batches] == list(
            range(snapshot.sequence + 1, snapshot.sequence + 1 + len(batches))
        )
        for prompt in PROMPTS[:3]:
            overlap = index.match(prefix_keys(pack_tokens(prompt), BLOCK_SIZE))[0]
            assert overlap.num_blocks == len(prompt) // BLOCK_SIZE
            assert overlap.host_blocks == (0 if prompt is PROMPTS[2] else len(prompt) // BLOCK_SIZE)


async def test_a_warm_disk_is_told_of_at_once(llama: Path, tmp_path: Path) -> None:
    """Nobody knows its tokens any more, but what they hash to."""
    async with tiered_engine(llama, disk(tmp_path)) as engine:
        await answer(engine, a_request(PROMPTS[1]))
        await answer(engine, a_request(PROMPTS[0], cache_salt="tenant"))
        await engine.tiers.wait_idle()
    async with tiered_engine(llama, disk(tmp_path)) as engine:
        index = PrefixIndex()
        batches: list[KVEventBatch] = []
        engine.subscribe_kv_events(batches.append)
        for event in engine.kv_snapshot()[0].events:
            assert index.apply(0, event)
        for prompt, salt in ((PROMPTS[1], None), (PROMPTS[0], "tenant")):
            keys = prefix_keys(pack_tokens(prompt), BLOCK_SIZE, cache_salt=salt)
            assert index.match(keys)[0].disk_blocks == len(prompt) // BLOCK_SIZE
        await answer(engine, a_request([*PROMPTS[1], 1, 2, 3, 4, 5]))
        await engine.tiers.wait_idle()
        for batch in batches:
            for event in batch.events:
                assert index.apply(0, event)
        keys = prefix_keys(pack_tokens([*PROMPTS[1], 1, 2, 3, 4]), BLOCK_SIZE)
        assert index.match(keys)[0].device_blocks == 17


@pytest.mark.parametrize(
    ("capacity_bytes", "message"), [(1000, "hold no block"), (20_000, "smaller than the device")]
)
async def test_sizes_that_cannot_work_are_refused_at_start(
    llama: Path, capacity_bytes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        async with tiered_engine(llama, ram(capacity_bytes)):
            pass


async def test_every_chunk_of_a_prompt_is_measured(llama: Path) -> None:
    """The last one is too short to say anything."""
    async with tiered_engine(
        llama, ram(), kv_onboarding="measured", max_num_batched_tokens=32, max_num_seqs=4
    ) as engine:
        prompt = random_prompt(3, 67)
        await answer(engine, a_request(prompt, SamplingParams(max_tokens=1)))
        await offloaded(engine)
        await answer(engine, a_request(prompt))
        await engine.tiers.wait_idle()
        engine.forget_device()
        await answer(engine, a_request(prompt))
        assert engine.kv_tier_statistics().num_decisions["unmeasured"] == 1


async def test_nothing_is_loaded_that_nobody_measured_and_a_probe_changes_that(llama: Path) -> None:
    async with tiered_engine(llama, ram(), kv_onboarding="measured") as engine:
        await answer(engine, a_request(PROMPTS[1]))
        await offloaded(engine)
        await answer(engine, a_request(PROMPTS[1]))
        await engine.tiers.wait_idle()
        statistics = engine.kv_tier_statistics()
        assert statistics.num_decisions == {"unmeasured": 1}
        assert statistics.num_matched_tokens == 60
        engine.forget_device()
        await answer(engine, a_request(PROMPTS[1]))
        assert sum(engine.kv_tier_statistics().num_decisions.values()) == 2
        assert engine.kv_tier_statistics().num_decisions["unmeasured"] == 1
