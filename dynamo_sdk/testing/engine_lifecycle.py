"""Engine checks: starting, draining, closing."""

from __future__ import annotations

import anyio

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import Engine

from .engine_bench import EngineBench, require_settled
from .report import CheckFailed, NotApplicable, require
from .streams import read_all


async def facts_make_sense(bench: EngineBench) -> None:
    """``start`` returns positive numbers, and blocks come with a block size."""
    facts = await bench.facts(bench.whole_role)
    require(facts.context_length > 1, f"context_length is {facts.context_length}")
    require(facts.dp_size >= 1, f"dp_size is {facts.dp_size}")
    for name in ("block_size", "num_blocks"):
        value = getattr(facts, name)
        require(value is None or value > 0, f"{name} is {value}")
    require(facts.num_blocks is None or facts.block_size is not None, "num_blocks without block_size")


async def close_without_start(bench: EngineBench) -> None:
    """``close`` may be called on an engine that was never started, and again."""
    engine = bench.new_engine()
    await engine.close()
    await engine.close()


async def close_twice(bench: EngineBench) -> None:
    """``close`` is idempotent."""
    engine = bench.new_engine()
    await engine.start()
    await engine.close()
    await engine.close()


async def close_after_interrupted_start(bench: EngineBench) -> None:
    """``start`` can be cancelled, and ``close`` works after a start that did not finish."""
    engine = bench.new_engine()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await engine.start()
    await engine.close()
    await engine.close()


async def generate_after_close(bench: EngineBench) -> None:
    """A closed engine refuses requests with an error of the SDK."""
    engine = bench.new_engine()
    await engine.start()
    await engine.close()
    try:
        answer = await read_all(engine, bench.greedy())
    except DynamoError:
        return
    raise CheckFailed(f"a closed engine gave {len(answer.token_ids)} tokens")


async def close_ends_what_runs(bench: EngineBench) -> None:
    """``close`` aborts running requests: their streams end with an error of the SDK, soon."""
    engine = bench.new_engine()
    facts = await engine.start()
    stream = engine.generate(bench.greedy(num_tokens=min(400, facts.context_length - 16)))
    try:
        await anext(stream)
        await engine.close()
        num_chunks = 0
        try:
            async for _ in stream:
                num_chunks += 1
        except DynamoError:
            return
        raise CheckFailed(f"the stream of a closed engine ended in peace, {num_chunks} chunks later")
    finally:
        await stream.aclose()
        await engine.close()


async def drain_returns_when_idle(bench: EngineBench) -> None:
    """``drain`` returns when there is no request."""
    engine = await bench.any_engine()
    await engine.drain()


async def drain_waits_for_requests(bench: EngineBench) -> None:
    """``drain`` returns only when no request is left, and lets what runs end in peace."""
    engine = bench.new_engine()
    if type(engine).drain is Engine.drain:
        raise NotApplicable("drain is not implemented")
    lengths: list[int] = []

    async def consume(seed: int, has_begun: anyio.Event) -> None:
        stream = engine.generate(bench.greedy(seed, num_tokens=20))
        num_tokens = 0
        async for chunk in stream:
            num_tokens += len(chunk.token_ids)
            has_begun.set()
        lengths.append(num_tokens)

    try:
        await engine.start()
        if engine.load() is None:
            raise NotApplicable("load() tells nothing")
        async with anyio.create_task_group() as tasks:
            for seed in range(4):
                has_begun = anyio.Event()
                tasks.start_soon(consume, seed, has_begun)
                await has_begun.wait()
            await engine.drain()
            require_settled(engine, None)
        require(lengths == [20] * 4, f"drained requests gave {lengths} tokens, not 20 each")
    finally:
        await engine.close()


LIFECYCLE_CHECKS = (
    facts_make_sense,
    close_without_start,
    close_twice,
    close_after_interrupted_start,
    generate_after_close,
    close_ends_what_runs,
    drain_returns_when_idle,
    drain_waits_for_requests,
)
