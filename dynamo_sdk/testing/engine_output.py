"""Engine checks: where the output begins and ends, and how it is counted."""

from __future__ import annotations

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import Promise
from dynamo_sdk.types import FinishReason, SamplingParams

from .engine_bench import EngineBench, greedy
from .engine_sampling import sampled
from .report import CheckFailed, NotApplicable, NotClaimed, require
from .streams import generate_request, read_all


async def ends_with_one_terminal_chunk(bench: EngineBench) -> None:
    """Exactly one chunk has a ``finish_reason`` and ``usage``, and it is the last.

    The request flow ends a leg at the first such chunk, and bills by its usage. Send it together with the
    last token, or alone behind it, on every path that ends a request.
    """
    engine = await bench.any_engine()
    for seed in range(3):
        chunks = (await read_all(engine, bench.greedy(seed))).chunks
        terminal = [number for number, chunk in enumerate(chunks) if chunk.finish_reason is not None]
        require(bool(terminal), f"none of {len(chunks)} chunks has a finish_reason")
        require(terminal == [len(chunks) - 1], f"chunks {terminal} of {len(chunks)} have a finish_reason")
        require(chunks[-1].usage is not None, "the last chunk has no usage")
        require(all(chunk.usage is None for chunk in chunks[:-1]), "a chunk before the last one has usage")


async def max_tokens_is_exact(bench: EngineBench) -> None:
    """With ``ignore_eos`` the deltas sum to ``max_tokens`` tokens, and the reason is ``length``.

    Clients pay for tokens. Count what was emitted, not steps: a step may bring several tokens, and the last
    one may bring too many.
    """
    engine = await bench.any_engine()
    for num_tokens in (1, 2, 17):
        answer = await read_all(engine, bench.greedy(num_tokens=num_tokens))
        require(
            len(answer.token_ids) == num_tokens,
            f"max_tokens={num_tokens} gave {len(answer.token_ids)} tokens",
        )
        require(
            answer.finish_reason is FinishReason.LENGTH, f"the reason is {answer.finish_reason}, not length"
        )


async def usage_counts_tokens(bench: EngineBench) -> None:
    """``usage`` counts the prompt and this leg's output; no more is cached than was asked.

    What earlier legs produced (``generated``) belongs neither to the prompt nor to this leg's output.
    Take the numbers from the stream that you send, not from the engine's own total.
    """
    engine = await bench.any_engine()
    for generated in ([], bench.prompt(99, 3)):
        request = bench.greedy(num_tokens=8, generated=generated)
        answer = await read_all(engine, request)
        usage = answer.usage
        if usage is None:
            raise CheckFailed("the last chunk has no usage")
        require(
            usage.num_prompt_tokens == request.num_prompt_tokens,
            f"usage counts {usage.num_prompt_tokens} prompt tokens of {request.num_prompt_tokens}",
        )
        require(
            usage.num_output_tokens == len(answer.token_ids),
            f"usage counts {usage.num_output_tokens} output tokens, the stream had {len(answer.token_ids)}",
        )
        most = request.num_prompt_tokens + request.num_generated_tokens
        require(
            0 <= usage.num_cached_tokens <= most, f"{usage.num_cached_tokens} of {most} tokens were cached"
        )


async def stop_token_ends_the_output(bench: EngineBench) -> None:
    """A stop token is emitted, ends the output, and the reason is ``stop``.

    ``stop_token_ids`` come from the client and from the chat template. Emit the token: whoever turns tokens
    into text knows that it is not to be shown.
    """
    engine = await bench.any_engine()
    seed, token_ids, index = await _distinct_token(bench)
    sampling = SamplingParams(
        max_tokens=len(token_ids), temperature=0.0, ignore_eos=True, stop_token_ids=(token_ids[index],)
    )
    answer = await read_all(engine, bench.greedy(seed, sampling=sampling))
    require(
        answer.token_ids == token_ids[: index + 1],
        f"stopping at {token_ids[index]} gave {answer.token_ids}, not {token_ids[: index + 1]}",
    )
    require(answer.finish_reason is FinishReason.STOP, f"the reason is {answer.finish_reason}, not stop")


async def min_tokens_delays_the_stop(bench: EngineBench) -> None:
    """Before ``min_tokens`` tokens, nothing stops the output.

    Benchmarks ask for fixed lengths in this way. Pass ``min_tokens`` on, or ignore stop and end tokens until
    then; ``generated`` counts.
    """
    engine = await bench.any_engine()
    seed, token_ids, index = await _distinct_token(bench)
    min_tokens = index + 3
    sampling = SamplingParams(
        max_tokens=min_tokens + 2,
        min_tokens=min_tokens,
        temperature=0.0,
        stop_token_ids=(token_ids[index],),
    )
    answer = await read_all(engine, bench.greedy(seed, sampling=sampling))
    require(
        len(answer.token_ids) >= min_tokens,
        f"min_tokens={min_tokens} gave {len(answer.token_ids)} tokens",
    )


async def continues_after_generated(bench: EngineBench) -> None:
    """Given the first tokens of a greedy output as ``generated``, the rest comes out: so a request can move
    to another worker.

    Append ``generated`` to the prompt, and do not emit it again.
    """
    await _require_the_rest(bench, greedy(12))


async def seed_continues_after_generated(bench: EngineBench) -> None:
    """Given the first tokens of a seeded output as ``generated``, the rest comes out, unless ``EngineFacts``
    says why the engine does not claim ``SEED_BY_POSITION``.

    Draw each token's chance from the seed and the token's position, ``generated`` included. A stream of
    random numbers per request starts over where the request moves to.
    """
    reason = (await bench.facts(bench.whole_role)).unclaimed.get(Promise.SEED_BY_POSITION)
    try:
        await _require_the_rest(bench, sampled(7))
    except CheckFailed as failure:
        if reason is None:
            raise
        raise NotClaimed(reason) from failure


async def _require_the_rest(bench: EngineBench, sampling: SamplingParams) -> None:
    engine = await bench.any_engine()
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    whole = (await read_all(engine, bench.greedy(sampling=sampling))).token_ids
    for num_given in (1, 5, 11):
        request = bench.greedy(sampling=sampling, generated=whole[:num_given])
        rest = (await read_all(engine, request)).token_ids
        require(
            rest == whole[num_given:],
            f"after {num_given} given tokens came {rest}, not {whole[num_given:]}",
        )


async def output_ends_at_the_context(bench: EngineBench) -> None:
    """A full context ends the output with ``length``, or the request is refused before it starts.

    There is no KV for another token. End with ``length`` at the last token that fits.
    """
    engine = await bench.any_engine()
    context_length = (await bench.facts(bench.whole_role)).context_length
    if context_length > 16_384:
        raise NotApplicable(f"filling a context of {context_length} tokens takes too long here")
    sampling = greedy(64)
    prompt = bench.prompt(5, context_length - 4)
    try:
        answer = await read_all(engine, generate_request(prompt, sampling))
    except InvalidRequest:
        return
    require(len(answer.token_ids) <= 5, f"{len(answer.token_ids)} tokens into a context with room for 4")
    require(answer.finish_reason is FinishReason.LENGTH, f"the reason is {answer.finish_reason}, not length")


async def _distinct_token(bench: EngineBench) -> tuple[int, list[int], int]:
    """A seed, its greedy output, and the index (after the first) of a token that is not in it before."""
    engine = await bench.any_engine()
    for seed in range(8):
        token_ids = (await read_all(engine, bench.greedy(seed, num_tokens=12))).token_ids
        for index in range(1, len(token_ids)):
            if token_ids[index] not in token_ids[:index]:
                return seed, token_ids, index
    raise NotApplicable("the model repeats one token, so no stop token can be told from the others")


OUTPUT_CHECKS = (
    ends_with_one_terminal_chunk,
    max_tokens_is_exact,
    usage_counts_tokens,
    stop_token_ends_the_output,
    min_tokens_delays_the_stop,
    continues_after_generated,
    seed_continues_after_generated,
    output_ends_at_the_context,
)
