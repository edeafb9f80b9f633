"""Engine checks: starting, answering a probe, draining, closing."""

from __future__ import annotations

import anyio

from dynamo_sdk.errors import DynamoError, EngineStartError
from dynamo_sdk.interfaces import Engine
from dynamo_sdk.types import Role

from .engine_bench import EngineBench, require_settled
from .report import CheckFailed, NotApplicable, require
from .streams import read_all


async def facts_make_sense(bench: EngineBench) -> None:
    """``start`` returns positive numbers, and blocks come with a block size.

    The frontend refuses prompts over ``context_length``, and routers count in blocks of ``block_size``. Take
    the numbers from the engine after it has loaded, not from its configuration.
    """
    facts = await bench.facts(bench.whole_role)
    require(facts.context_length > 1, f"context_length is {facts.context_length}")
    require(facts.dp_size >= 1, f"dp_size is {facts.dp_size}")
    for name in ("block_size", "num_blocks"):
        value = getattr(facts, name)
        require(value is None or value > 0, f"{name} is {value}")
    require(facts.num_blocks is None or facts.block_size is not None, "num_blocks without block_size")


async def answers_a_probe(bench: EngineBench) -> None:
    """A request for one token is answered soon.

    Readiness and health are probed in this way, because a process that hangs still listens. All checks that
    need an answer are skipped for an engine that gives none. Where no token came, it has stopped making
    steps: look for what it waits for, or for a call that blocks the event loop.
    """
    engine = await bench.any_engine()

    def give_up(reason: str) -> None:
        for each_role in Role:
            bench.give_up(each_role, f"{reason}: see answers_a_probe")

    with anyio.move_on_after(bench.probe_timeout_s) as waited:
        try:
            answer = await read_all(engine, bench.greedy(num_tokens=1))
        except Exception:
            give_up("the engine does not answer")
            raise
    if waited.cancelled_caught:
        give_up("the engine hangs")
        raise CheckFailed(f"no token came within {bench.probe_timeout_s:g} s")
    require(bool(answer.token_ids), "a probe for one token got none")


async def close_without_start(bench: EngineBench) -> None:
    """``close`` may be called on an engine that was never started, and again.

    A worker that fails before it starts its engine closes it all the same. Make ``close`` look at what
    exists instead of assuming that all of it does.
    """
    engine = bench.new_engine()
    await engine.close()
    await engine.close()


async def close_twice(bench: EngineBench) -> None:
    """``close`` is idempotent.

    Shutdown has more than one path, and each of them closes. Remember that the engine is closed, and return.
    """
    engine = bench.new_engine()
    await engine.start()
    await engine.close()
    await engine.close()


async def close_after_interrupted_start(bench: EngineBench) -> None:
    """``start`` can be cancelled, and ``close`` works after a start that did not finish.

    Ctrl-C during the load of a large model must leave nothing behind. Await the load on a thread or process,
    and give back in ``close`` whatever ``start`` had got by then.
    """
    engine = bench.new_engine()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await engine.start()
    await engine.close()
    await engine.close()


async def close_after_failed_start(bench: EngineBench) -> None:
    """A start that cannot succeed raises ``EngineStartError``, and ``close`` works afterwards, twice.

    The error's text is all that a user sees when a worker does not come up; any other class looks like a
    defect. Wrap what the engine raises while it loads, and name the cause.
    """
    if bench.unstartable is None:
        raise NotApplicable("no engine that cannot start was given")
    engine = bench.unstartable(bench.whole_role)
    try:
        await engine.start()
    except EngineStartError:
        pass
    except DynamoError as error:
        raise CheckFailed(f"start raised {type(error).__name__}, not EngineStartError") from error
    else:
        await engine.close()
        raise NotApplicable("the engine starts with whatever model it is given")
    await engine.close()
    await engine.close()


async def starts_again(bench: EngineBench) -> None:
    """After ``close``, a new engine starts in the same process and gives the same tokens.

    Notebooks and tests do this, and so does a worker that is restarted in place. What the first engine
    opened (ports, shared memory, device memory, global state) must be closed when ``close`` returns.
    """
    outputs: list[list[int]] = []
    for _ in range(2):
        async with bench.own_engine() as (engine, _facts):
            outputs.append((await read_all(engine, bench.greedy())).token_ids)
    require(
        outputs[0] == outputs[1] or not bench.is_exact, f"first {outputs[0]}, after a restart {outputs[1]}"
    )


async def generate_after_close(bench: EngineBench) -> None:
    """A closed engine refuses requests with an error of the SDK.

    A request that arrives during shutdown moves to another worker, if it fails with a class from
    ``dynamo_sdk.errors``; ``EngineFailed`` is the right one.
    """
    async with bench.own_engine() as (engine, _):
        await engine.close()
        try:
            answer = await read_all(engine, bench.greedy())
        except DynamoError:
            return
        raise CheckFailed(f"a closed engine gave {len(answer.token_ids)} tokens")


async def close_ends_what_runs(bench: EngineBench) -> None:
    """``close`` aborts running requests: their streams end with an error of the SDK, soon.

    A stream that just stops looks like a complete answer. Fail each waiting request with ``EngineFailed``
    when the engine closes.
    """
    async with bench.own_engine() as (engine, facts):
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


async def drain_returns_when_idle(bench: EngineBench) -> None:
    """``drain`` returns when there is no request.

    A shutdown waits for it. Look whether there is something to wait for before waiting.
    """
    engine = await bench.any_engine()
    await engine.drain()


async def drain_waits_for_requests(bench: EngineBench) -> None:
    """``drain`` returns only when no request is left, and lets what runs end in peace.

    Scaling down and rolling restarts lose no request that way. Count streams, and wake who drains when the
    last one has ended.
    """
    if type(bench.new_engine()).drain is Engine.drain:
        raise NotApplicable("drain is not implemented")
    lengths: list[int] = []

    async def consume(engine: Engine, seed: int, has_begun: anyio.Event) -> None:
        stream = engine.generate(bench.greedy(seed, num_tokens=20))
        num_tokens = 0
        async for chunk in stream:
            num_tokens += len(chunk.token_ids)
            has_begun.set()
        lengths.append(num_tokens)

    async with bench.own_engine() as (engine, _):
        if engine.load() is None:
            raise NotApplicable("load() tells nothing")
        async with anyio.create_task_group() as tasks:
            for seed in range(4):
                has_begun = anyio.Event()
                tasks.start_soon(consume, engine, seed, has_begun)
                await has_begun.wait()
            await engine.drain()
            require_settled(engine, None)
        require(lengths == [20] * 4, f"drained requests gave {lengths} tokens, not 20 each")


LIFECYCLE_CHECKS = (
    facts_make_sense,
    answers_a_probe,
    close_without_start,
    close_twice,
    close_after_interrupted_start,
    close_after_failed_start,
    starts_again,
    generate_after_close,
    close_ends_what_runs,
    drain_returns_when_idle,
    drain_waits_for_requests,
)
