"""Engine checks: the two legs of a disaggregated request, when all goes well."""

from __future__ import annotations

from dynamo_sdk.interfaces import Engine, ExposesBlocks
from dynamo_sdk.types import FinishReason, GenerateRequest, Role

from .engine_bench import EngineBench, require_settled
from .engine_legs import Legs
from .report import CheckFailed, NotApplicable, require
from .streams import read_all


async def prefill_hands_over(bench: EngineBench) -> None:
    """A prefill leg gives one token and then ``HANDOVER`` with usage.

    The token is the client's first one, and the chunk behind it carries the ticket. Stop after one token
    whatever ``max_tokens`` says.
    """
    legs = await Legs.of(bench)
    if legs.is_rendezvous:
        raise NotApplicable("in a rendezvous, prefill waits for decode")
    engine = legs.prefill
    before = engine.load()
    request = legs.prefill_request(bench.greedy())
    answer = await read_all(engine, request)
    _release(engine, request)
    require(len(answer.token_ids) == 1, f"a prefill leg gave {len(answer.token_ids)} tokens")
    require(
        answer.finish_reason is FinishReason.HANDOVER,
        f"a prefill leg ended with {answer.finish_reason}, not handover",
    )
    require(answer.usage is not None, "the last chunk has no usage")
    if isinstance(engine, ExposesBlocks):
        require_settled(engine, before)


async def finished_prefill_does_not_hand_over(bench: EngineBench) -> None:
    """When the first token finishes the request, the prefill leg ends it and holds nothing.

    Nobody will come for the blocks. Look for the end before the hand-over.
    """
    legs = await Legs.of(bench)
    if legs.is_rendezvous:
        raise NotApplicable("in a rendezvous, prefill waits for decode")
    before = legs.prefill.load()
    answer = await read_all(legs.prefill, legs.prefill_request(bench.greedy(num_tokens=1)))
    require(
        answer.finish_reason is FinishReason.LENGTH,
        f"a prefill leg with max_tokens=1 ended with {answer.finish_reason}, not length",
    )
    require_settled(legs.prefill, before)


async def both_legs_give_the_whole_output(bench: EngineBench) -> None:
    """Prefill on one engine, hand-over, decode on another: the tokens of an aggregated run, and nothing
    is held on either side.

    Wrong or missing KV changes the text without an error. Compare the order of blocks, the layout and the
    position at which decode goes on.
    """
    legs = await Legs.of(bench)
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    before = legs.prefill.load(), legs.decode.load()
    alone = await legs.alone(bench)
    for seed in range(3):
        joined = await legs.run(bench.greedy(seed, num_tokens=9))
        require(len(joined) == 9, f"the two legs gave {len(joined)} tokens of 9")
        whole = (await read_all(alone, bench.greedy(seed, num_tokens=9))).token_ids
        require(joined == whole, f"the two legs gave {joined}, one engine {whole}")
    require_settled(legs.prefill, before[0])
    require_settled(legs.decode, before[1])


async def release_is_idempotent(bench: EngineBench) -> None:
    """``release_blocks`` ignores unknown ids, and may be called twice.

    Expiry, revocation and a reader's disconnect all release. Take the request out of the table first, and
    return when it is not there.
    """
    engine = await bench.engine(Role.PREFILL)
    blocks = _blocks_of(engine)
    before = engine.load()
    request = bench.greedy(role=Role.PREFILL)
    await read_all(engine, request)
    require(bool(blocks.held_blocks(request.request_id)), "no blocks are held after a hand-over")
    for request_id in (request.request_id, request.request_id, "never-heard-of"):
        blocks.release_blocks(request_id)
    try:
        blocks.held_blocks(request.request_id)
    except KeyError:
        require_settled(engine, before)
    else:
        raise CheckFailed("released blocks are still held")


async def reservation_can_be_given_back(bench: EngineBench) -> None:
    """Reserved blocks cover the known tokens, and come back when they are released.

    The fetch that should fill them may fail. The last known token needs no block yet: its KV is computed by
    the decode leg's first step.
    """
    engine = await bench.engine(Role.DECODE)
    blocks = _blocks_of(engine)
    before = engine.load()
    request = bench.greedy(role=Role.DECODE, generated=bench.prompt(8, 1))
    reservation = await blocks.reserve_blocks(request)
    block_size = blocks.block_memory.layout.block_size
    num_tokens = request.num_prompt_tokens + request.num_generated_tokens - 1
    num_needed = -(-num_tokens // block_size)
    require(
        len(reservation.block_ids) == num_needed,
        f"{len(reservation.block_ids)} blocks reserved for {num_tokens} tokens, {num_needed} are needed",
    )
    require(
        0 <= reservation.num_cached_blocks <= num_needed,
        f"{reservation.num_cached_blocks} of {num_needed} reserved blocks are said to be cached",
    )
    blocks.release_blocks(request.request_id)
    require_settled(engine, before)


def _blocks_of(engine: Engine) -> ExposesBlocks:
    if not isinstance(engine, ExposesBlocks):
        raise NotApplicable("the engine does not expose its blocks")
    return engine


def _release(engine: Engine, request: GenerateRequest) -> None:
    if isinstance(engine, ExposesBlocks):
        engine.release_blocks(request.request_id)


HANDOVER_CHECKS = (
    prefill_hands_over,
    finished_prefill_does_not_hand_over,
    both_legs_give_the_whole_output,
    release_is_idempotent,
    reservation_can_be_given_back,
)
