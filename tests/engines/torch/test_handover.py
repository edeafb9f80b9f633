"""Prefill on one engine, decode on another: the blocks move, the output does not change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.errors import EngineFailed, InvalidRequest
from dynamo_sdk.types import FinishReason, ForwardPassMetrics, GenerateRequest, Role, SamplingParams

from .models import random_prompt
from .running import Answer, a_request, answer, assert_all_free, running_engine

pytestmark = pytest.mark.anyio

SAMPLING = SamplingParams(max_tokens=24, seed=3, top_p=0.9, repetition_penalty=1.1, logprobs=2)


async def hand_over(
    prefill: TorchEngine, decode: TorchEngine, prompt: list[int], request_id: str
) -> tuple[Answer, int]:
    """The whole answer, and how many blocks were copied."""
    first = await answer(prefill, a_request(prompt, SAMPLING, request_id=request_id, role=Role.PREFILL))
    assert first.last.finish_reason is FinishReason.HANDOVER
    request = a_request(prompt, SAMPLING, request_id=request_id, role=Role.DECODE, generated=first.token_ids)
    held = prefill.held_blocks(request_id)
    reservation = await decode.reserve_blocks(request)
    missing = slice(reservation.num_cached_blocks, None)
    sources, targets = held[missing], reservation.block_ids[missing]
    buffer = bytearray(len(sources) * prefill.block_memory.layout.block_bytes)
    prefill.block_memory.read(sources, memoryview(buffer))
    decode.block_memory.write(targets, memoryview(buffer))
    prefill.release_blocks(request_id)
    second = await answer(decode, request)
    second.token_ids = first.token_ids + second.token_ids
    second.logprobs = first.logprobs + second.logprobs
    return second, len(sources)


async def test_tokens_and_logprobs_equal_the_aggregated_ones(llama: Path, device: str) -> None:
    prompts = [random_prompt(seed, length) for seed, length in enumerate((1, 4, 15, 16, 17, 60))]
    steps: list[ForwardPassMetrics] = []
    async with (
        running_engine(llama, device=device, dtype="float32") as whole,
        running_engine(llama, device=device, dtype="float32", role=Role.PREFILL) as prefill,
        running_engine(llama, dtype="float32", role=Role.DECODE) as decode,
    ):
        assert prefill.block_memory.layout == decode.block_memory.layout
        decode.subscribe_metrics(steps.append)
        expected = [await answer(whole, a_request(prompt, SAMPLING)) for prompt in prompts]
        found = await asyncio.gather(
            *(hand_over(prefill, decode, prompt, f"r{i}") for i, prompt in enumerate(prompts))
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[0].token_ids == theirs.token_ids
            assert [one.logprob for one in ours[0].logprobs] == pytest.approx(
                [one.logprob for one in theirs.logprobs], abs=1e-4
            )
    assert sum(step.num_prefill_tokens for step in steps) == 0, "the decode side must not prefill"


async def test_only_missing_blocks_move(llama: Path) -> None:
    prompt = random_prompt(1, 41)
    async with running_engine(llama) as prefill, running_engine(llama) as decode:
        _, num_first = await hand_over(prefill, decode, prompt, "a")
        _, num_second = await hand_over(prefill, decode, prompt, "b")
    assert (num_first, num_second) == (11, 1)


async def test_a_prefill_leg_that_finishes_holds_nothing(llama: Path) -> None:
    async with running_engine(llama) as engine:
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        found = await answer(engine, a_request(random_prompt(1, 9), sampling, role=Role.PREFILL))
        assert found.last.finish_reason is FinishReason.LENGTH
        with pytest.raises(KeyError):
            engine.held_blocks("r")


async def test_held_blocks_survive_others_and_come_back_on_release(llama: Path) -> None:
    async with running_engine(llama, num_blocks=24, enable_prefix_caching=False) as engine:
        await answer(engine, a_request(random_prompt(1, 40), role=Role.PREFILL))
        held = engine.held_blocks("r")
        kept = bytearray(len(held) * engine.block_memory.layout.block_bytes)
        engine.block_memory.read(held, memoryview(kept))
        await answer(engine, a_request(random_prompt(2, 30), request_id="other"))
        again = bytearray(len(kept))
        engine.block_memory.read(held, memoryview(again))
        assert again == kept
        engine.release_blocks("r")
        engine.release_blocks("r")
        engine.release_blocks("never heard of")
        assert_all_free(engine)


def decode_request(request_id: str, num_tokens: int = 40) -> GenerateRequest:
    return a_request(
        random_prompt(5, num_tokens), SAMPLING, request_id=request_id, role=Role.DECODE, generated=[1]
    )


async def test_reservations_wait_for_memory_in_order(llama: Path) -> None:
    async with running_engine(llama, num_blocks=24, enable_prefix_caching=False) as engine:
        await engine.reserve_blocks(decode_request("a"))
        await engine.reserve_blocks(decode_request("b"))
        order: list[str] = []

        async def reserve(name: str) -> None:
            await engine.reserve_blocks(decode_request(name))
            order.append(name)

        waiting = [asyncio.create_task(reserve(name)) for name in ("c", "d", "e", "f")]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait(waiting[1:2])
        engine.release_blocks("a")
        await waiting[0]
        assert order == ["c"]
        engine.release_blocks("b")
        await waiting[2]
        assert order == ["c", "e"]
        waiting[3].cancel()
        await asyncio.wait(waiting)
        for name in ("c", "e"):
            engine.release_blocks(name)
        assert_all_free(engine)


async def test_reserving_what_never_fits_is_refused(llama: Path) -> None:
    async with running_engine(llama, num_blocks=8) as engine:
        with pytest.raises(InvalidRequest):
            await engine.reserve_blocks(decode_request("a", 60))


async def test_other_tokens_than_reserved_are_refused(llama: Path) -> None:
    async with running_engine(llama) as engine:
        await engine.reserve_blocks(decode_request("a"))
        other = a_request(random_prompt(6, 9), request_id="a", role=Role.DECODE, generated=[1])
        with pytest.raises(InvalidRequest):
            await answer(engine, other)
        engine.release_blocks("a")


async def test_closing_fails_those_who_wait_for_memory(llama: Path) -> None:
    async with running_engine(llama, num_blocks=12) as engine:
        await engine.reserve_blocks(decode_request("a"))
        waiting = asyncio.create_task(engine.reserve_blocks(decode_request("b")))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(EngineFailed):
            await waiting
        engine.release_blocks("a")
