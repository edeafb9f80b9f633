"""Engine checks: the tokens, and what is said about them."""

from __future__ import annotations

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.types import FinishReason, SamplingParams

from .engine_bench import EngineBench
from .report import CheckFailed, NotApplicable, require
from .streams import generate_request, read_all

_TOLERANCE = 1e-4


async def ends_with_one_terminal_chunk(bench: EngineBench) -> None:
    """Exactly one chunk has a ``finish_reason`` and ``usage``, and it is the last."""
    engine = await bench.any_engine()
    for seed in range(3):
        chunks = (await read_all(engine, bench.greedy(seed))).chunks
        terminal = [number for number, chunk in enumerate(chunks) if chunk.finish_reason is not None]
        require(bool(terminal), f"none of {len(chunks)} chunks has a finish_reason")
        require(terminal == [len(chunks) - 1], f"chunks {terminal} of {len(chunks)} have a finish_reason")
        require(chunks[-1].usage is not None, "the last chunk has no usage")
        require(all(chunk.usage is None for chunk in chunks[:-1]), "a chunk before the last one has usage")


async def max_tokens_is_exact(bench: EngineBench) -> None:
    """With ``ignore_eos`` the deltas sum to ``max_tokens`` tokens, and the reason is ``length``."""
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
    """``usage`` counts the prompt and this leg's output; no more is cached than was asked."""
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
    """A stop token is emitted, ends the output, and the reason is ``stop``."""
    engine = await bench.any_engine()
    token_ids, index = await _distinct_token(bench)
    sampling = SamplingParams(
        max_tokens=len(token_ids), temperature=0.0, ignore_eos=True, stop_token_ids=(token_ids[index],)
    )
    answer = await read_all(engine, bench.greedy(sampling=sampling))
    require(
        answer.token_ids == token_ids[: index + 1],
        f"stopping at {token_ids[index]} gave {answer.token_ids}, not {token_ids[: index + 1]}",
    )
    require(answer.finish_reason is FinishReason.STOP, f"the reason is {answer.finish_reason}, not stop")


async def min_tokens_delays_the_stop(bench: EngineBench) -> None:
    """Before ``min_tokens`` tokens, nothing stops the output."""
    engine = await bench.any_engine()
    token_ids, index = await _distinct_token(bench)
    min_tokens = index + 3
    sampling = SamplingParams(
        max_tokens=min_tokens + 2,
        min_tokens=min_tokens,
        temperature=0.0,
        stop_token_ids=(token_ids[index],),
    )
    answer = await read_all(engine, bench.greedy(sampling=sampling))
    require(
        len(answer.token_ids) >= min_tokens,
        f"min_tokens={min_tokens} gave {len(answer.token_ids)} tokens",
    )


async def seed_reproduces(bench: EngineBench) -> None:
    """Sampling is a pure function of logits, seed and position: the same request gives the same tokens."""
    engine = await bench.any_engine()
    for seed in (1, 2**40):
        request = bench.greedy(sampling=_sampled(seed, num_tokens=12))
        first = (await read_all(engine, request)).token_ids
        second = (await read_all(engine, bench.greedy(sampling=_sampled(seed, num_tokens=12)))).token_ids
        require(first == second, f"seed {seed} gave {first}, then {second}")


async def logprobs_match_tokens(bench: EngineBench) -> None:
    """Each token has its logprob, at most 0, and at most as many alternatives as asked, best first."""
    engine = await bench.any_engine()
    for num_top in (0, 2):
        sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=num_top)
        answer = await read_all(engine, bench.greedy(sampling=sampling))
        for chunk in answer.chunks:
            num_logprobs = len(chunk.logprobs or ())
            require(
                num_logprobs == len(chunk.token_ids),
                f"a chunk has {len(chunk.token_ids)} tokens and {num_logprobs} logprobs",
            )
        for token_id, entry in zip(answer.token_ids, answer.logprobs, strict=True):
            values = [logprob for _, logprob in entry.top]
            require(entry.logprob <= _TOLERANCE, f"token {token_id} has the logprob {entry.logprob}")
            require(len(values) <= num_top, f"{len(values)} alternatives, {num_top} were asked for")
            require(num_top == 0 or bool(values), f"no alternatives, {num_top} were asked for")
            require(values == sorted(values, reverse=True), f"alternatives are not best first: {values}")
            if entry.top:
                require(
                    entry.logprob >= values[0] - _TOLERANCE,
                    f"greedy took {token_id} ({entry.logprob}) though {entry.top[0]} is likelier",
                )


async def no_logprobs_unless_asked(bench: EngineBench) -> None:
    """Without ``logprobs`` in the request, chunks carry none."""
    engine = await bench.any_engine()
    answer = await read_all(engine, bench.greedy())
    require(
        all(chunk.logprobs is None for chunk in answer.chunks), "a chunk has logprobs that nobody asked for"
    )


async def continues_after_generated(bench: EngineBench) -> None:
    """Given the first tokens of an output as ``generated``, the rest comes out: for greedy and for seeded
    sampling, so that a request can move to another worker."""
    engine = await bench.any_engine()
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    for sampling in (greedy, _sampled(7, num_tokens=12)):
        whole = (await read_all(engine, bench.greedy(sampling=sampling))).token_ids
        for num_given in (1, 5, 11):
            request = bench.greedy(sampling=sampling, generated=whole[:num_given])
            rest = (await read_all(engine, request)).token_ids
            require(
                rest == whole[num_given:],
                f"after {num_given} given tokens came {rest}, not {whole[num_given:]}",
            )


async def output_ends_at_the_context(bench: EngineBench) -> None:
    """A full context ends the output with ``length``, or the request is refused before it starts."""
    engine = await bench.any_engine()
    context_length = (await bench.facts(bench.whole_role)).context_length
    if context_length > 16_384:
        raise NotApplicable(f"filling a context of {context_length} tokens takes too long here")
    sampling = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
    prompt = bench.prompt(5, context_length - 4)
    try:
        answer = await read_all(engine, generate_request(prompt, sampling))
    except DynamoError as error:
        require(error.code == "invalid_value", f"a nearly full context raised {type(error).__name__}")
        return
    require(len(answer.token_ids) <= 5, f"{len(answer.token_ids)} tokens into a context with room for 4")
    require(answer.finish_reason is FinishReason.LENGTH, f"the reason is {answer.finish_reason}, not length")


async def _distinct_token(bench: EngineBench) -> tuple[list[int], int]:
    """A greedy output, and the index (after the first) of a token that is not in it before."""
    engine = await bench.any_engine()
    token_ids = (await read_all(engine, bench.greedy(num_tokens=12))).token_ids
    for index in range(1, len(token_ids)):
        if token_ids[index] not in token_ids[:index]:
            return token_ids, index
    raise NotApplicable("the model repeats one token, so no stop token can be told from the others")


def _sampled(seed: int, *, num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=1.0, seed=seed, ignore_eos=True)


OUTPUT_CHECKS = (
    ends_with_one_terminal_chunk,
    max_tokens_is_exact,
    usage_counts_tokens,
    stop_token_ends_the_output,
    min_tokens_delays_the_stop,
    seed_reproduces,
    logprobs_match_tokens,
    no_logprobs_unless_asked,
    continues_after_generated,
    output_ends_at_the_context,
)
