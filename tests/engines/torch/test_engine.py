"""Feeds, embeddings, refusals and failures of the engine."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
import torch

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.engines.torch.runner import ModelRunner
from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest, Overloaded
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.transfer import host_pages
from dynamo_sdk.types import (
    BlocksRemoved,
    BlocksStored,
    EmbedRequest,
    KVEventBatch,
    ModelSpec,
    Role,
    SamplingParams,
    pack_tokens,
)

from .models import VOCAB_SIZE, random_prompt
from .running import GREEDY, a_request, answer, answer_all, running_engine

pytestmark = pytest.mark.anyio


def replay(
    state: dict[object, tuple[int, ...]], batches: list[KVEventBatch]
) -> dict[object, tuple[int, ...]]:
    """What a router would know: block -> all tokens up to its end."""
    for event in (event for batch in batches for event in batch.events):
        if isinstance(event, BlocksStored):
            tokens = state[event.parent_hash] if event.parent_hash is not None else ()
            for index, name in enumerate(event.block_hashes):
                tokens += event.token_ids[index * event.block_size : (index + 1) * event.block_size]
                state[name] = tokens
        elif isinstance(event, BlocksRemoved):
            for name in event.block_hashes:
                del state[name]
        else:
            state.clear()
    return state


async def test_kv_events_and_snapshot_agree(llama: Path) -> None:
    batches: list[KVEventBatch] = []
    async with running_engine(llama, num_blocks=40) as engine:
        engine.subscribe_kv_events(batches.append)
        assert engine.kv_snapshot()[0].sequence == -1
        await answer_all(engine, [random_prompt(seed, 30) for seed in range(6)])
        await answer_all(engine, [random_prompt(seed, 45) for seed in range(3)])
        (snapshot,) = engine.kv_snapshot()
    assert [batch.sequence for batch in batches] == list(range(len(batches)))
    assert snapshot.sequence == batches[-1].sequence
    assert any(isinstance(event, BlocksRemoved) for batch in batches for event in batch.events)
    state = replay({}, batches)
    assert state
    assert state == replay({}, [snapshot])


@pytest.mark.parametrize(
    ("config", "is_populated"),
    [({}, False), ({"num_blocks": 40}, True), ({"kv_memory_bytes": 1 << 20}, True)],
    ids=["chosen", "blocks", "bytes"],
)
async def test_memory_that_was_said_is_taken_at_the_start(
    llama: Path, config: dict[str, int], is_populated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    collect = host_pages._collect_large_pages
    monkeypatch.setattr(
        host_pages, "_collect_large_pages", lambda memory: (seen.append(memory), collect(memory))
    )
    setup = EngineSetup(model=ModelSpec(name="m", path=str(llama)), role=Role.AGGREGATED)
    engine = TorchEngine(setup, TorchConfig(device="cpu", **config))
    await engine.start()
    await engine.close()
    assert bool(seen) == is_populated


async def test_embedding_is_the_normalised_mean(
    folders: dict[str, Path], references: dict[str, torch.nn.Module], device: str
) -> None:
    prompt = random_prompt(3, 25)
    for architecture, folder in folders.items():
        async with running_engine(folder, device=device, dtype="float32") as engine:
            found = await engine.embed(EmbedRequest(request_id="e", model="m", prompt=pack_tokens(prompt)))
        with torch.inference_mode():
            hidden = references[architecture].base_model(torch.tensor([prompt])).last_hidden_state
        expected = hidden[0].mean(0)
        assert found.vector == pytest.approx((expected / expected.norm()).tolist(), abs=1e-4)
        assert math.hypot(*found.vector) == pytest.approx(1.0, abs=1e-5)
        assert found.num_prompt_tokens == 25


async def test_embedding_between_steps(llama: Path) -> None:
    request = EmbedRequest(request_id="e", model="m", prompt=pack_tokens(random_prompt(3, 25)))
    async with running_engine(llama) as engine:
        alone = await engine.embed(request)
        _, *together = await asyncio.gather(
            answer_all(engine, [random_prompt(1, 9)]), engine.embed(request), engine.embed(request)
        )
    assert together == [alone, alone]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (a_request([]), "prompt"),
        (a_request([VOCAB_SIZE]), "prompt"),
        (a_request([1], generated=[VOCAB_SIZE]), "generated"),
        (a_request([1], SamplingParams(max_tokens=0)), "max_tokens"),
        (a_request([1], SamplingParams(max_tokens=1, temperature=-0.5)), "temperature"),
        (a_request([1], SamplingParams(max_tokens=1, temperature=math.nan)), "temperature"),
        (a_request([1], SamplingParams(max_tokens=1, top_p=0.0)), "top_p"),
        (a_request([1], SamplingParams(max_tokens=1, top_k=-1)), "top_k"),
        (a_request([1], SamplingParams(max_tokens=1, min_p=1.5)), "min_p"),
        (a_request([1], SamplingParams(max_tokens=1, repetition_penalty=0.0)), "repetition_penalty"),
        (a_request([1], SamplingParams(max_tokens=1, presence_penalty=math.inf)), "presence_penalty"),
        (a_request([1], SamplingParams(max_tokens=1, logit_bias={VOCAB_SIZE: 1.0})), "logit_bias"),
        (a_request([1], SamplingParams(max_tokens=1, logit_bias={3: math.nan})), "logit_bias"),
        (a_request([1], SamplingParams(max_tokens=1, logprobs=-1)), "logprobs"),
        (a_request([1] * 400), "prompt"),
    ],
)
async def test_bad_requests_name_the_field(llama: Path, request_, param: str) -> None:
    async with running_engine(llama) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await answer(engine, request_)
    assert caught.value.param == param


async def test_stop_ids_beyond_the_vocabulary_do_no_harm(llama: Path) -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.0, stop_token_ids=(VOCAB_SIZE + 5,), min_tokens=2)
    async with running_engine(llama) as engine:
        assert len((await answer(engine, a_request([1], sampling))).token_ids) == 3


async def test_a_full_queue_is_overload(llama: Path) -> None:
    async with running_engine(llama, max_num_seqs=1, max_num_waiting=2) as engine:
        tasks = [asyncio.create_task(answer(engine, a_request([1, i], request_id=f"r{i}"))) for i in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results].count(Overloaded) == 2


async def test_a_failing_step_fails_its_requests_only(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = ModelRunner.execute
    is_broken = True

    def sometimes(self, rows):
        if is_broken and any(row.start > 25 for row in rows):
            raise RuntimeError("out of luck")
        return execute(self, rows)

    monkeypatch.setattr(ModelRunner, "execute", sometimes)
    async with running_engine(llama) as engine:
        expected = (await answer(engine, a_request(random_prompt(1, 8)))).token_ids
        with pytest.raises(EngineFailed, match="out of luck"):
            await answer(engine, a_request(random_prompt(2, 24)))
        is_broken = False
        assert (await answer(engine, a_request(random_prompt(1, 8)))).token_ids == expected


async def test_a_slow_consumer_gets_merged_chunks(llama: Path) -> None:
    finished = asyncio.Event()
    async with running_engine(llama) as engine:
        expected = await answer(engine, a_request(random_prompt(1, 8)))
        engine.subscribe_metrics(lambda _: None if engine.load().num_running else finished.set())
        stream = engine.generate(a_request(random_prompt(1, 8)))
        chunks = [await anext(stream)]
        await finished.wait()
        chunks += [chunk async for chunk in stream]
    assert len(chunks) == 2
    assert chunks[0].token_ids + chunks[1].token_ids == tuple(expected.token_ids)


async def test_before_start_and_after_a_failed_one(tmp_path: Path) -> None:
    setup = EngineSetup(model=ModelSpec(name="m", path=str(tmp_path)), role=Role.AGGREGATED)
    engine = TorchEngine(setup, TorchConfig(device="cpu"))
    assert engine.load() is None
    engine.check_integrity()
    engine.release_blocks("r")
    with pytest.raises(EngineFailed, match="not been started"):
        await answer(engine, a_request([1], GREEDY))
    with pytest.raises(EngineStartError):
        await engine.start()
    await engine.close()
    await engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        await answer(engine, a_request([1], GREEDY))


async def test_cancelled_start(llama: Path) -> None:
    setup = EngineSetup(model=ModelSpec(name="m", path=str(llama)), role=Role.AGGREGATED)
    engine = TorchEngine(setup, TorchConfig(device="cpu", num_blocks=10))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await engine.close()


async def test_hand_overs_wait_in_a_bounded_queue_that_shows(llama: Path) -> None:
    async with running_engine(llama, max_num_seqs=1, max_num_waiting=1) as engine:
        asked = [a_request([1, 2, 3], request_id=f"r{i}") for i in range(3)]
        await engine.reserve_blocks(asked[0])
        waiting = asyncio.create_task(engine.reserve_blocks(asked[1]))
        await asyncio.sleep(0)
        load = engine.load()
        assert load is not None
        assert load.num_waiting == 1
        with pytest.raises(Overloaded, match="max_num_waiting"):
            await engine.reserve_blocks(asked[2])
        engine.release_blocks("r0")
        assert (await waiting).num_cached_blocks == 0
        engine.release_blocks("r1")
        engine.check_integrity()
