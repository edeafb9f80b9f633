"""KV that goes down from the device into SGLang's host memory and a store of ours, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.plugins import Registry
from dynamo_sdk.services.kv_tiers import tier_setups
from dynamo_sdk.testing import generate_request, read_all
from dynamo_sdk.types import BlocksStored, KVEventBatch, KVTier, Role, SamplingParams
from dynamo_sdk.types.plan import KVTierPlan
from dynamo_sdk_sglang.engine import SglangEngine

from .conftest import has_gpu, sglang_engine

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
NUM_PROMPTS, PROMPT_TOKENS, CACHED_TOKENS = 12, 300, 288
DEVICE_BLOCKS = 40


def tiered_engine(folder: Path, ram_bytes: int) -> SglangEngine:
    plans = (
        KVTierPlan(name="ram", kind="ram", capacity_bytes=ram_bytes, args={"capacity_bytes": ram_bytes}),
        KVTierPlan(
            name="disk",
            kind="disk",
            capacity_bytes=64 << 20,
            args={"capacity_bytes": 64 << 20, "path": str(folder)},
        ),
    )
    on_cpu = {} if has_gpu() else {"hicache_io_backend": "direct", "hicache_mem_layout": "layer_first"}
    return sglang_engine(
        Role.AGGREGATED,
        num_blocks=DEVICE_BLOCKS,
        kv_tiers=tier_setups(plans, Registry.of(), "Whole-0"),
        hicache_storage_prefetch_policy="wait_complete",
        **on_cpu,
    )


async def test_what_the_device_and_ram_have_no_room_for_comes_back_from_disk(tmp_path: Path):
    engine = tiered_engine(tmp_path, 6_000_000)
    batches: list[KVEventBatch] = []
    engine.subscribe_kv_events(batches.append)
    try:
        await engine.start()
        prompts = [
            [(seed * 37 + 11 * token) % 1000 + 10 for token in range(PROMPT_TOKENS)]
            for seed in range(NUM_PROMPTS)
        ]
        first = [await read_all(engine, generate_request(prompt, GREEDY)) for prompt in prompts]
        assert [answer.usage and answer.usage.num_cached_tokens for answer in first] == [0] * NUM_PROMPTS
        again = await read_all(engine, generate_request(prompts[0], GREEDY))
        assert again.usage is not None
        assert again.usage.num_cached_tokens == CACHED_TOKENS, "it is on the disk, and nowhere else"
        assert again.token_ids == first[0].token_ids
        near = await read_all(engine, generate_request(prompts[-1], GREEDY))
        assert near.usage is not None
        assert near.usage.num_cached_tokens == CACHED_TOKENS
        assert near.token_ids == first[-1].token_ids
        tiers = {event.tier for batch in batches for event in batch.events if isinstance(event, BlocksStored)}
        assert tiers >= {KVTier.DEVICE, KVTier.HOST}
    finally:
        await engine.close()
