"""Engine checks: many at once, and leaving early."""

from __future__ import annotations

import anyio

from .engine_bench import EngineBench, greedy, require_settled
from .report import NotApplicable, require
from .streams import Answer, generate_request, read_all

_NUM_CONCURRENT = 32


async def serves_32_at_once(bench: EngineBench) -> None:
    """32 concurrent requests of different lengths all get their own tokens; afterwards nothing is held.

    Requests come from as many tasks. Keep what belongs to one request in one object, and give it back on
    every way out.
    """
    engine = await bench.any_engine()
    before = engine.load()
    answers = await _run_together(bench)
    for number, answer in answers.items():
        require(
            len(answer.token_ids) == 4 + number % 5,
            f"request {number} got {len(answer.token_ids)} tokens of {4 + number % 5}",
        )
        usage = answer.usage
        require(
            usage is not None and usage.num_prompt_tokens == 12, f"request {number} got the usage {usage}"
        )
    require_settled(engine, before)


async def company_changes_nothing(bench: EngineBench) -> None:
    """A request gets the same tokens alone as among 31 others.

    A cross-talk of requests shows here first. If only rounding differs between batch sizes, say that the
    engine is not exact.
    """
    engine = await bench.any_engine()
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    answers = await _run_together(bench)
    for number in range(0, _NUM_CONCURRENT, 5):
        alone = (await read_all(engine, bench.greedy(number, num_tokens=4 + number % 5))).token_ids
        require(
            answers[number].token_ids == alone,
            f"request {number} got {answers[number].token_ids} in company and {alone} alone",
        )


async def close_before_first_pull(bench: EngineBench) -> None:
    """A stream that was never read can be closed; nothing is held.

    The caller may give up between the call and the first token. Take nothing before the generator runs,
    or take it in an object with a ``close``.
    """
    engine = await bench.any_engine()
    before = engine.load()
    stream = engine.generate(bench.greedy())
    await stream.aclose()
    require_settled(engine, before)


async def cancel_before_first_token(bench: EngineBench) -> None:
    """Cancelling the task that waits for the first token frees everything before it ends.

    Most clients that leave do so while they wait. Queue inside of the ``try`` whose ``finally`` takes the
    request out again.
    """
    engine = await bench.any_engine()
    before = engine.load()
    for _ in range(8):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await read_all(engine, bench.greedy(num_tokens=100))
        require_settled(engine, before)
    async with anyio.create_task_group() as tasks:
        for seed in range(8):
            tasks.start_soon(read_all, engine, bench.greedy(seed, num_tokens=100))
        await anyio.wait_all_tasks_blocked()  # now they wait for the engine
        tasks.cancel_scope.cancel()
    require_settled(engine, before)


async def close_mid_stream(bench: EngineBench) -> None:
    """Closing the stream after some tokens frees everything before the close returns.

    The next request may need the blocks at once. Abort in the generator's ``finally``, and wait there
    until the engine has let go.
    """
    engine = await bench.any_engine()
    before = engine.load()
    for num_chunks in (1, 2, 5):
        stream = engine.generate(bench.greedy(num_tokens=100))
        for _ in range(num_chunks):
            await anext(stream)
        await stream.aclose()
        require_settled(engine, before)


async def cancel_mid_stream(bench: EngineBench) -> None:
    """Cancelling the task that reads the stream frees everything, and the cancellation gets through.

    Cancellation is how deadlines and leaving clients arrive. Do not catch it; where ``finally`` must await,
    shield that.
    """
    engine = await bench.any_engine()
    before = engine.load()
    for num_chunks in (1, 3):
        stream = engine.generate(bench.greedy(num_tokens=100))
        has_ended = False
        with anyio.CancelScope() as scope:
            try:
                for _ in range(num_chunks):
                    await anext(stream)
                scope.cancel()
                async for _ in stream:
                    pass
                has_ended = True
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
        require(not has_ended, "the stream ran to its end in a cancelled scope")
        require_settled(engine, before)


async def close_at_the_end(bench: EngineBench) -> None:
    """Closing right after the last chunk frees everything before the close returns.

    Readers stop at the terminal chunk and do not ask for more. Free before the last chunk is yielded, or in
    ``finally``.
    """
    engine = await bench.any_engine()
    before = engine.load()
    stream = engine.generate(bench.greedy())
    async for chunk in stream:
        if chunk.finish_reason is not None:
            break
    await stream.aclose()
    require_settled(engine, before)


async def a_third_leaves_early(bench: EngineBench) -> None:
    """Of 32 concurrent requests a third leaves at different moments: the others are served whole, and
    afterwards nothing is held.

    Leaving changes the batch under the others' feet. Find sequences by request, not by their place in the
    batch.
    """
    engine = await bench.any_engine()
    before = engine.load()
    lengths: dict[int, int] = {}

    async def consume(number: int) -> None:
        stream = engine.generate(bench.greedy(number, num_tokens=16))
        leaves_after = number % 4 if number % 3 == 0 else None
        num_tokens = 0
        try:
            if leaves_after != 0:
                async for chunk in stream:
                    num_tokens += len(chunk.token_ids)
                    if leaves_after is not None and num_tokens >= leaves_after:
                        break
        finally:
            await stream.aclose()
        if leaves_after is None:
            lengths[number] = num_tokens

    async with anyio.create_task_group() as tasks:
        for number in range(_NUM_CONCURRENT):
            tasks.start_soon(consume, number)
    short = {number: length for number, length in lengths.items() if length != 16}
    require(not short, f"requests that stayed got fewer than 16 tokens: {short}")
    require_settled(engine, before)


async def an_id_can_be_used_again(bench: EngineBench) -> None:
    """After a request has left, another one may have its id (a retry on the same worker has).

    Forget the id when its request ends, or give the engine ids of your own.
    """
    engine = await bench.any_engine()
    sampling = greedy(6)
    stream = engine.generate(generate_request(bench.prompt(1), sampling, request_id="retried"))
    await anext(stream)
    await stream.aclose()
    answer = await read_all(engine, generate_request(bench.prompt(1), sampling, request_id="retried"))
    require(len(answer.token_ids) == 6, f"the retry got {len(answer.token_ids)} tokens of 6")


async def _run_together(bench: EngineBench) -> dict[int, Answer]:
    engine = await bench.any_engine()
    answers: dict[int, Answer] = {}

    async def consume(number: int) -> None:
        answers[number] = await read_all(engine, bench.greedy(number, num_tokens=4 + number % 5))

    async with anyio.create_task_group() as tasks:
        for number in range(_NUM_CONCURRENT):
            tasks.start_soon(consume, number)
    return answers


CANCEL_CHECKS = (
    serves_32_at_once,
    company_changes_nothing,
    close_before_first_pull,
    cancel_before_first_token,
    close_mid_stream,
    cancel_mid_stream,
    close_at_the_end,
    a_third_leaves_early,
    an_id_can_be_used_again,
)
