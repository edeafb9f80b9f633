"""Tiers below the real vLLM's device: what comes back from them is what would have been computed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from msgspec.structs import replace

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import Answer, generate_request, read_all
from dynamo_sdk.types import (
    BlocksStored,
    ForwardPassMetrics,
    KVEvent,
    KVTier,
    KVTransferParams,
    Role,
    SamplingParams,
)
from dynamo_sdk.types.plan import KVTierPlan
from dynamo_sdk_vllm.engine import VllmEngine
from dynamo_sdk_vllm.tiers.config import Shard, setups_of

from .conftest import vllm_engine

pytestmark = pytest.mark.anyio

NUM_BLOCKS = 24
"""Of 32 tokens: two long prompts fill the device."""
CAPACITY_BYTES = 64 << 20
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


def prompt(number: int, num_tokens: int = 300) -> list[int]:
    return [(7 * token + 31 * number) % 900 + 20 for token in range(num_tokens)]


def tiers(folder: Path | None = None) -> tuple[KVTierSetup, ...]:
    plans = [KVTierPlan(name="ram", kind="ram", capacity_bytes=CAPACITY_BYTES)]
    if folder is not None:
        plans = [
            KVTierPlan(name="disk", kind="disk", capacity_bytes=CAPACITY_BYTES, args={"path": str(folder)})
        ]
    return setups_of(plans, Registry.of(), Shard())


@asynccontextmanager
async def running(role: Role = Role.AGGREGATED, **args: object) -> AsyncIterator[VllmEngine]:
    engine = vllm_engine(role, num_blocks=NUM_BLOCKS, kv_onboarding="always", **args)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def ask(engine: VllmEngine, number: int, sampling: SamplingParams = GREEDY, **facts: object) -> Answer:
    return await read_all(engine, replace(generate_request(prompt(number), sampling), **facts))


async def fill_the_device(engine: VllmEngine, first: int) -> None:
    for number in range(first, first + 4):
        await ask(engine, number)


def num_cached(answer: Answer) -> int:
    assert answer.usage is not None
    return answer.usage.num_cached_tokens


@pytest.fixture(scope="module")
async def expected(decode: VllmEngine) -> Callable[[int], list[int]]:
    """What a vLLM without tiers says, for the prompts that the tests compare."""
    answers = {number: (await ask(decode, number)).token_ids for number in range(8)}
    return answers.__getitem__


async def test_an_evicted_prompt_comes_back_from_ram(expected: Callable[[int], list[int]]):
    async with running(kv_tiers=tiers(), max_num_batched_tokens=64) as engine:
        told: list[KVEvent] = []
        engine.subscribe_kv_events(lambda batch: told.extend(batch.events))
        first = await ask(engine, 0)
        assert (first.token_ids, num_cached(first)) == (expected(0), 0)
        await fill_the_device(engine, 1)
        again = await ask(engine, 0)
        assert (again.token_ids, num_cached(again)) == (expected(0), 288)

        # what it has generated is in the tier too: the next turn of a conversation
        await fill_the_device(engine, 1)
        turn = generate_request([*prompt(0), *first.token_ids, *range(100, 120)], GREEDY)
        assert num_cached(await read_all(engine, turn)) == 320

        # nobody gets another tenant's blocks
        await fill_the_device(engine, 1)
        tenant = await ask(engine, 0, cache_salt="tenant")
        assert (tenant.token_ids, num_cached(tenant)) == (expected(0), 0)

        held = [event for event in told if isinstance(event, BlocksStored) and event.tier is KVTier.HOST]
        salts = {event.cache_salt for event in held}
        assert salts == {None, "tenant"}
        device = [event for event in told if isinstance(event, BlocksStored) and event.tier is KVTier.DEVICE]
        names = {name for event in device for name in event.block_hashes}
        assert len({name for event in held for name in event.block_hashes} & names) >= 5 * 9

        said = engine.kv_tier_statistics()
        (ram,) = said.tiers
        assert ram.counts.num_onboarded_blocks >= 9 + 10
        assert 9 + 10 <= ram.counts.num_hit_blocks < ram.counts.num_lookup_blocks
        assert said.num_matched_tokens == ram.counts.num_hit_blocks * 32
        assert ram.counts.num_offloaded_blocks_from_device >= 5 * 9
        assert said.num_decisions["load"] >= 2


async def test_many_at_once_are_preempted_and_say_what_they_said_alone(decode: VllmEngine):
    """Eight requests that want five times the device's blocks, twice: the second time, from the tier."""
    long = replace(GREEDY, max_tokens=150)
    alone = [(await ask(decode, number, long, cache_salt="alone")).token_ids for number in range(8)]
    async with running(kv_tiers=tiers()) as engine:
        steps: list[ForwardPassMetrics] = []
        engine.subscribe_metrics(steps.append)
        for _ in range(2):
            answers: dict[int, Answer] = {}

            async def one(number: int, answers: dict[int, Answer] = answers) -> None:
                answers[number] = await ask(engine, number, long, request_id=f"{number}-{len(steps)}")

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(one, number)
            assert [answers[number].token_ids for number in range(8)] == alone
        assert sum(step.num_preempted for step in steps) > 0
        assert sum(num_cached(answer) for answer in answers.values()) > 0


async def test_a_restarted_worker_finds_its_disk_and_a_broken_one_is_computed(
    expected: Callable[[int], list[int]], tmp_path: Path
):
    async with running(kv_tiers=tiers(tmp_path)) as engine:
        for number in range(3):
            await ask(engine, number)
    blocks = tmp_path / "blocks"
    async with running(kv_tiers=tiers(tmp_path)) as engine:
        warm = await ask(engine, 0)
        assert (warm.token_ids, num_cached(warm)) == (expected(0), 288)
        os.truncate(blocks, 0)  # what vLLM was told of is gone when it wants to load it
        lost = await ask(engine, 1)
        assert (lost.token_ids, num_cached(lost)) == (expected(1), 0)
    async with running(kv_tiers=tiers(tmp_path)) as engine:
        for number in range(3):
            await ask(engine, number)
    content = bytearray(blocks.read_bytes())
    content[:: 4096 + 17] = bytes(byte ^ 1 for byte in content[:: 4096 + 17])
    blocks.write_bytes(content)
    async with running(kv_tiers=tiers(tmp_path)) as engine:
        for number in range(3):
            wrong = await ask(engine, number)
            assert (wrong.token_ids, num_cached(wrong)) == (expected(number), 0)


async def test_data_parallel_ranks_have_folders_and_parts_of_the_capacity_of_their_own(
    expected: Callable[[int], list[int]], tmp_path: Path
):
    async with running(kv_tiers=tiers(tmp_path), data_parallel_size=2) as engine:
        for turn in range(2):
            for number in range(3):
                for rank in range(2):
                    name = f"{number}-{rank}-{turn}"
                    answer = await ask(engine, number, request_id=name, dp_rank=rank)
                    assert (answer.token_ids, num_cached(answer)) == (expected(number), 288 if turn else 0)
        (disk,) = engine.kv_tier_statistics().tiers
        assert disk.store.capacity_bytes is not None
        assert disk.store.capacity_bytes <= CAPACITY_BYTES
        assert disk.store.num_blocks >= 2 * 3 * 9
    assert {path.name async for path in anyio.Path(tmp_path).iterdir()} == {"rank-0-0", "rank-1-0"}


async def test_tiers_and_a_hand_over_over_nixl(expected: Callable[[int], list[int]]):
    """The prefill worker's prompts come back from its RAM; decode fetches them as ever."""
    async with (
        running(Role.PREFILL, kv_tiers=tiers()) as prefill,
        running(Role.DECODE, kv_tiers=tiers()) as decode,
    ):
        for turn in range(2):
            for number in range(4):
                first = await leg(prefill, Role.PREFILL, number, turn)
                assert num_cached(first) == (288 if turn else 0)
                answer = await leg(decode, Role.DECODE, number, turn, first.kv_transfer)
                assert answer.token_ids == expected(number)
        await fill_the_device(decode, 4)
        alone = await ask(decode, 0, request_id="alone")  # decode has saved what it fetched
        assert (alone.token_ids, num_cached(alone)) == (expected(0), 288)


async def leg(
    engine: VllmEngine, role: Role, number: int, turn: int, ticket: KVTransferParams | None = None
) -> Answer:
    name = f"{role}-{number}-{turn}"
    return await ask(engine, number, request_id=name, role=role, kv_transfer=ticket)


async def test_what_bytes_may_depend_on_is_refused():
    from dynamo_sdk_vllm.tiers.connector import _require_bytes_of_tokens_alone

    def config(**settings: object) -> SimpleNamespace:
        part = SimpleNamespace(**settings)
        return SimpleNamespace(cache_config=part, parallel_config=part)

    _require_bytes_of_tokens_alone(config(decode_context_parallel_size=1))
    for settings in ({"calculate_kv_scales": True}, {"decode_context_parallel_size": 2}):
        with pytest.raises(ConfigError, match="leave one of them out"):
            _require_bytes_of_tokens_alone(config(**settings))


async def test_kv_that_is_not_of_one_kind_is_refused():
    from dynamo_sdk_vllm.tiers.connector import _require_one_group

    def cache(kinds: Iterable[str]) -> SimpleNamespace:
        groups = [SimpleNamespace(kv_cache_spec=type(kind, (), {})()) for kind in kinds]
        return SimpleNamespace(kv_cache_groups=groups)

    _require_one_group(cache(["FullAttentionSpec"]))
    for kinds in (["FullAttentionSpec", "SlidingWindowSpec"], ["MambaSpec"], []):
        with pytest.raises(ConfigError, match="disable_hybrid_kv_cache_manager"):
            _require_one_group(cache(kinds))
