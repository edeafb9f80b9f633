"""Engine checks: input that must be refused."""

from __future__ import annotations

import msgspec

from dynamo_sdk.errors import InvalidRequest

from .engine_bench import EngineBench, require_refused, require_settled
from .report import NotApplicable, require
from .streams import generate_request, read_all

_NO_TOKEN = 2**32 - 1


async def empty_prompt_is_refused(bench: EngineBench) -> None:
    """A prompt without tokens raises ``InvalidRequest`` before the first chunk, and holds nothing.

    There is no logit to sample from. Check before the request is queued.
    """
    await require_refused(await bench.any_engine(), generate_request([]), "an empty prompt")


async def long_prompt_is_refused(bench: EngineBench) -> None:
    """A prompt over the context raises ``InvalidRequest`` before the first chunk, and holds nothing.

    Never truncate: the client would get an answer to another question. Raise ``ContextLengthExceeded``, which
    is an ``InvalidRequest``, with both numbers.
    """
    engine = await bench.any_engine()
    num_tokens = (await bench.facts(bench.whole_role)).context_length + 1
    await require_refused(engine, generate_request(bench.prompt(0, num_tokens)), "a prompt over the context")


async def strange_token_hurts_nobody(bench: EngineBench) -> None:
    """A token id outside of the vocabulary is refused with ``InvalidRequest`` or served; the next request is
    served as before.

    On a GPU an index out of range ends the process, and with it everybody's requests. Compare the largest
    id with the size of the vocabulary before the request is queued.
    """
    engine = await bench.any_engine()
    before = engine.load()
    try:
        await read_all(engine, generate_request([*bench.prompt(0, 3), _NO_TOKEN]))
    except InvalidRequest:
        require_settled(engine, before)
    answer = await read_all(engine, bench.greedy(num_tokens=2))
    require(bool(answer.token_ids), "the next request got no token")
    require_settled(engine, before)


async def ranks_are_those_declared(bench: EngineBench) -> None:
    """Each data-parallel rank below ``dp_size`` serves a request that names it; a rank beyond is refused with
    ``InvalidRequest``.

    Routers choose ranks for what they have cached. Pass ``dp_rank`` on, and check it against ``dp_size``.
    """
    engine = await bench.any_engine()
    dp_size = (await bench.facts(bench.whole_role)).dp_size
    if dp_size == 1:
        raise NotApplicable("the engine has one rank")
    for rank in range(dp_size):
        answer = await read_all(engine, msgspec.structs.replace(bench.greedy(num_tokens=3), dp_rank=rank))
        require(len(answer.token_ids) == 3, f"rank {rank} gave {len(answer.token_ids)} tokens of 3")
    beyond = msgspec.structs.replace(bench.greedy(), dp_rank=dp_size)
    await require_refused(engine, beyond, f"rank {dp_size} of {dp_size}")


INPUT_CHECKS = (
    empty_prompt_is_refused,
    long_prompt_is_refused,
    strange_token_hurts_nobody,
    ranks_are_those_declared,
)
