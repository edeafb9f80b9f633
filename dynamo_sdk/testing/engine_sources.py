"""Engine checks: chunks by plain calls (``OpensSources``), where the engine has them."""

from __future__ import annotations

from contextlib import closing

import anyio

from dynamo_sdk.errors import DynamoError, InvalidRequest
from dynamo_sdk.interfaces import Engine, ItemSource, OpensSources
from dynamo_sdk.types import GenerateChunk, GenerateRequest

from .engine_bench import EngineBench, greedy, require_settled
from .engine_sampling import sampled
from .report import CheckFailed, NotApplicable, require
from .streams import Answer, generate_request, read_all


async def source_gives_what_generate_gives(bench: EngineBench) -> None:
    """``open`` yields the tokens, logprobs, reason and usage of ``generate``, and then ``is_over``.

    Workers take whichever there is. Build one on top of the other, so that there is one path only.
    """
    engine = await _opening(bench)
    for sampling in (greedy(9), sampled(5, max_tokens=9, logprobs=1)):
        streamed = await read_all(engine, bench.greedy(sampling=sampling))
        taken = await _take_all(engine, bench.greedy(sampling=sampling))
        for what in ("token_ids", "finish_reason"):
            one, other = getattr(taken, what), getattr(streamed, what)
            require(one == other or not bench.is_exact, f"{what} is {one} from open, {other} from generate")
        require(
            len(taken.logprobs) == len(streamed.logprobs),
            f"{len(taken.logprobs)} logprobs from open, {len(streamed.logprobs)} from generate",
        )
        usage, other_usage = taken.usage, streamed.usage
        require(
            usage is not None
            and other_usage is not None
            and usage.num_prompt_tokens == other_usage.num_prompt_tokens
            and usage.num_output_tokens == other_usage.num_output_tokens,
            f"usage is {usage} from open, {other_usage} from generate",
        )


async def source_refuses_at_open(bench: EngineBench) -> None:
    """``open`` itself raises ``InvalidRequest`` for what cannot run, and holds nothing then.

    There is no first chunk to wait for whose error could be caught. Check in ``open``, before anything is
    queued.
    """
    engine = await _opening(bench)
    before = engine.load()
    try:
        _opens(engine).open(generate_request([])).close()
    except InvalidRequest:
        require_settled(engine, before)
    except DynamoError as error:
        raise CheckFailed(f"an empty prompt raised {type(error).__name__}, not InvalidRequest") from error
    else:
        raise CheckFailed("an empty prompt was accepted by open")


async def source_close_frees(bench: EngineBench) -> None:
    """``close`` frees what a source holds before it returns: before the first token, later and at the
    end; and it is idempotent.

    It is called by plain code that cannot wait. Take the request off the engine at once; a step that is under
    way may drop its token.
    """
    engine = await _opening(bench)
    before = engine.load()
    for num_items in (0, 1, 3):
        source = _opens(engine).open(bench.greedy(num_tokens=100))
        for _ in range(num_items):
            await _next(source)
        source.close()
        source.close()
        require_settled(engine, before)
    with closing(_opens(engine).open(bench.greedy(num_tokens=3))) as source:
        while not source.is_over:
            await _next(source)
    source.close()
    require_settled(engine, before)


async def source_raises_what_ended_it(bench: EngineBench) -> None:
    """When the engine closes, ``take`` raises an error of the SDK; the listener is told.

    Otherwise the stream would wait for ever. Treat the failure as the source's last item.
    """
    async with bench.own_engine() as (engine, facts):
        if not isinstance(engine, OpensSources):
            raise NotApplicable("the engine opens no sources")
        source = engine.open(bench.greedy(num_tokens=min(400, facts.context_length - 16)))
        with closing(source):
            await _next(source)
            await engine.close()
            try:
                while not source.is_over:
                    await _next(source)
            except DynamoError:
                return
            raise CheckFailed("the source of a closed engine ended in peace")


async def _opening(bench: EngineBench) -> Engine:
    engine = await bench.any_engine()
    if not isinstance(engine, OpensSources):
        raise NotApplicable("the engine opens no sources")
    return engine


def _opens(engine: Engine) -> OpensSources:
    assert isinstance(engine, OpensSources)
    return engine


async def _take_all(engine: Engine, request: GenerateRequest) -> Answer:
    answer = Answer()
    with closing(_opens(engine).open(request)) as source:
        while not source.is_over:
            answer.chunks.append(await _next(source))
    return answer


async def _next(source: ItemSource[GenerateChunk]) -> GenerateChunk:
    """The next item, once there is one."""
    while (item := source.take()) is None:
        has_more = anyio.Event()
        source.listen(has_more.set)
        if (item := source.take()) is not None:  # it may have come before somebody listened
            break
        await has_more.wait()
    return item


SOURCE_CHECKS = (
    source_gives_what_generate_gives,
    source_refuses_at_open,
    source_close_frees,
    source_raises_what_ended_it,
)
