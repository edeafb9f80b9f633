"""Engine checks: how tokens are chosen, and what is said of their probability."""

from __future__ import annotations

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import Engine
from dynamo_sdk.types import SamplingParams

from .engine_bench import EngineBench
from .report import NotApplicable, require
from .streams import read_all

_TOLERANCE = 1e-4
_SEEDS = (1, 2, 3, 2**40)
_NUM_TOKENS = 12


async def seed_reproduces(bench: EngineBench) -> None:
    """Sampling is a pure function of logits, seed and position: the same request gives the same tokens.

    A request that moves to another worker samples on with its seed. Seed a generator per request, not the
    engine, and take all 64 bits of the seed.
    """
    engine = await bench.any_engine()
    for seed in (1, 2**40):
        first, second = [await _sample(bench, engine, sampled(seed)) for _ in range(2)]
        require(first == second, f"seed {seed} gave {first}, then {second}")


async def narrow_sampling_is_greedy(bench: EngineBench) -> None:
    """``top_k=1``, a tiny ``top_p`` and ``min_p=1`` leave the likeliest token, or are refused with
    ``InvalidRequest``; they are never ignored.

    A client cannot see that a parameter was dropped on the way. Map each field of ``SamplingParams``; for one
    that the engine lacks, refuse every value but its default, and name it.
    """
    engine = await bench.any_engine()
    await _require_sampling(bench, engine)
    likeliest = await _sample(bench, engine, sampled(0, temperature=0.0))
    narrow = {
        "top_k": sampled(1, top_k=1),
        "top_p": sampled(1, top_p=1e-6),
        "min_p": sampled(1, min_p=1.0),
    }
    for field, sampling in narrow.items():
        try:
            token_ids = await _sample(bench, engine, sampling)
        except InvalidRequest:
            continue
        require(
            not bench.is_exact or token_ids == likeliest,
            f"{field} changed nothing: it gave {token_ids}, the likeliest are {likeliest}",
        )


async def logit_bias_is_honoured(bench: EngineBench) -> None:
    """A token with a bias of 100 comes, one with -100 does not; or the request is refused with
    ``InvalidRequest``.

    Clients steer by it. Add the bias to the logits before anything else is done with them.
    """
    engine = await bench.any_engine()
    await _require_sampling(bench, engine)
    first = (await _sample(bench, engine, sampled(0, temperature=0.0)))[0]
    wanted = next(token_id for token_id in bench.prompt(3) if token_id != first)
    try:
        forced = await _sample(bench, engine, sampled(0, temperature=0.0, logit_bias={wanted: 100.0}))
        kept_away = await _sample(bench, engine, sampled(0, temperature=0.0, logit_bias={first: -100.0}))
    except InvalidRequest:
        return
    require(set(forced) == {wanted}, f"with a bias of 100 for {wanted} came {forced}")
    require(first not in kept_away, f"with a bias of -100 against {first} came {kept_away}")


async def strange_sampling_is_refused(bench: EngineBench) -> None:
    """A value that no engine can honour raises ``InvalidRequest`` before the first chunk.

    The frontend checks what clients send, but services of a graph call engines directly. A negative
    temperature inside a batch can take the whole batch down; check before the request is queued.
    """
    engine = await bench.any_engine()
    await _require_sampling(bench, engine)
    accepted: list[str] = []
    for field, sampling in {
        "max_tokens=0": sampled(1, max_tokens=0),
        "temperature=-1": sampled(1, temperature=-1.0),
        "top_p=1.5": sampled(1, top_p=1.5),
        "top_p=nan": sampled(1, top_p=float("nan")),
    }.items():
        try:
            await _sample(bench, engine, sampling)
        except InvalidRequest:
            continue
        accepted.append(field)
    require(not accepted, f"accepted {', '.join(accepted)}")


async def logprobs_match_tokens(bench: EngineBench) -> None:
    """Each token has its logprob, at most 0, and at most as many alternatives as asked, best first.

    They are shown next to the text, token by token. Take them from the raw distribution (log-softmax of the
    logits), and sort the alternatives.
    """
    engine = await bench.any_engine()
    for num_top in (0, 2):
        answer = await read_all(
            engine, bench.greedy(sampling=sampled(0, temperature=0.0, max_tokens=6, logprobs=num_top))
        )
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
    """Without ``logprobs`` in the request, chunks carry none.

    They cost more on the wire than the tokens themselves. Leave the field at None.
    """
    engine = await bench.any_engine()
    answer = await read_all(engine, bench.greedy())
    require(
        all(chunk.logprobs is None for chunk in answer.chunks), "a chunk has logprobs that nobody asked for"
    )


def sampled(
    seed: int,
    *,
    max_tokens: int = _NUM_TOKENS,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    logit_bias: dict[int, float] | None = None,
    logprobs: int | None = None,
) -> SamplingParams:
    """By chance, ``max_tokens`` tokens, end tokens or not."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        logit_bias=logit_bias or {},
        ignore_eos=True,
        logprobs=logprobs,
    )


async def _sample(bench: EngineBench, engine: Engine, sampling: SamplingParams) -> list[int]:
    return (await read_all(engine, bench.greedy(sampling=sampling))).token_ids


async def _require_sampling(bench: EngineBench, engine: Engine) -> None:
    """Skip the check for engines that choose no tokens (echo, simulators)."""
    for seed in _SEEDS:
        by_chance = await _sample(bench, engine, sampled(seed))
        if by_chance != await _sample(bench, engine, sampled(seed, temperature=0.0)):
            return
    raise NotApplicable("the engine does not sample: temperature changes nothing")


SAMPLING_CHECKS = (
    seed_reproduces,
    narrow_sampling_is_greedy,
    logit_bias_is_honoured,
    strange_sampling_is_refused,
    logprobs_match_tokens,
    no_logprobs_unless_asked,
)
