"""Whoever leaves, at whatever moment, leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from dynamo_sdk.errors import EngineFailed
from dynamo_sdk.types import ForwardPassMetrics, Role, SamplingParams

from .models import random_prompt
from .running import a_request, answer, answer_all, assert_all_free, running_engine, started_engine

pytestmark = pytest.mark.anyio

LONG = SamplingParams(max_tokens=100, temperature=0.0)


async def test_closing_the_generator_frees_before_it_returns(llama: Path) -> None:
    async with running_engine(llama) as engine:
        for num_chunks in (0, 1, 5):
            stream = engine.generate(a_request(random_prompt(1, 30), LONG))
            for _ in range(num_chunks):
                await anext(stream)
            await stream.aclose()
            assert_all_free(engine)


async def test_cancelling_at_any_tick_frees_before_it_returns(llama: Path) -> None:
    async with running_engine(llama, max_num_batched_tokens=16) as engine:
        for num_ticks in range(0, 60, 3):
            task = asyncio.create_task(answer(engine, a_request(random_prompt(1, 30), LONG)))
            for _ in range(num_ticks):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert_all_free(engine)


async def test_the_others_go_on(llama: Path) -> None:
    prompts = [random_prompt(seed, 10 + 3 * seed) for seed in range(8)]
    sampling = SamplingParams(max_tokens=40, temperature=0.0)
    order = random.Random(1)
    async with running_engine(llama, num_blocks=60, max_num_batched_tokens=24) as engine:
        expected = await answer_all(engine, prompts, sampling)
        tasks = [
            asyncio.create_task(answer(engine, a_request(prompt, sampling, request_id=f"c{i}")))
            for i, prompt in enumerate(prompts)
        ]
        victims = order.sample(range(8), 4)
        for victim in victims:
            for _ in range(order.randrange(60)):
                await asyncio.sleep(0)
            tasks[victim].cancel()
            engine.check_integrity()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    for index, result in enumerate(found):
        if isinstance(result, asyncio.CancelledError):
            assert index in victims
        else:
            assert not isinstance(result, BaseException)
            assert result.token_ids == expected[index]


async def test_an_id_can_be_used_again_at_once(llama: Path) -> None:
    async with running_engine(llama) as engine:
        stream = engine.generate(a_request(random_prompt(1, 30), LONG))
        await anext(stream)
        await stream.aclose()
        assert len((await answer(engine, a_request(random_prompt(2, 5)))).token_ids) == 16


async def test_a_handover_nobody_read_is_released(llama: Path) -> None:
    async with running_engine(llama, role=Role.PREFILL) as engine:
        stream = engine.generate(a_request(random_prompt(1, 30), LONG, role=Role.PREFILL))
        consumer = asyncio.ensure_future(anext(stream))
        held: list[int] = []

        def leave(_: ForwardPassMetrics) -> None:  # in the tick of the hand-over, before it can be read
            held.extend(engine.held_blocks("r"))
            consumer.cancel()

        engine.subscribe_metrics(leave)
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert len(held) == 8
        assert_all_free(engine)


async def test_closing_the_engine_fails_its_requests(llama: Path) -> None:
    async with running_engine(llama) as engine:
        streams = [
            engine.generate(a_request(random_prompt(i, 20), LONG, request_id=f"r{i}")) for i in range(3)
        ]
        for stream in streams:
            await anext(stream)
        await engine.close()
        await engine.close()
        for stream in streams:
            with pytest.raises(EngineFailed):
                _ = [chunk async for chunk in stream]
        with pytest.raises(EngineFailed, match="closed"):
            await anext(engine.generate(a_request([1])))
        await engine.drain()


async def test_drain_waits_for_what_runs(llama: Path) -> None:
    async with running_engine(llama) as engine:
        await engine.drain()
        running = asyncio.create_task(answer(engine, a_request(random_prompt(1, 20))))
        await asyncio.sleep(0)
        await engine.drain()
        assert (await running).last.finish_reason is not None


async def test_a_cancelled_engine_loop_leaves_nobody_waiting(llama: Path) -> None:
    async with started_engine(llama) as engine:
        streams = [
            engine.generate(a_request(random_prompt(i, 20), LONG, request_id=f"r{i}")) for i in range(3)
        ]
        for stream in streams:
            await anext(stream)
        (loop,) = (task for task in asyncio.all_tasks() if task.get_name() == "torch-engine")
        loop.cancel()  # as asyncio.run does to all tasks at its end
        await streams[0].aclose()
        for stream in streams[1:]:
            with pytest.raises(EngineFailed):
                _ = [chunk async for chunk in stream]
        with pytest.raises(EngineFailed):
            await anext(engine.generate(a_request([1])))
        await engine.close()
        engine.check_integrity()
