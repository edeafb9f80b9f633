"""Engine checks: the two legs of a disaggregated request."""

from __future__ import annotations

import msgspec

from dynamo_sdk.interfaces import Engine, ExposesBlocks
from dynamo_sdk.types import FinishReason, GenerateRequest, Role, pack_tokens

from .engine_bench import EngineBench, require_settled
from .report import CheckFailed, NotApplicable, require
from .streams import Answer, read_all


async def prefill_hands_over(bench: EngineBench) -> None:
    """A prefill leg gives one token and then ``HANDOVER`` with usage."""
    engine = await bench.engine(Role.PREFILL)
    before = engine.load()
    request = bench.greedy(role=Role.PREFILL)
    answer = await read_all(engine, request)
    _release(engine, request)
    require(len(answer.token_ids) == 1, f"a prefill leg gave {len(answer.token_ids)} tokens")
    require(
        answer.finish_reason is FinishReason.HANDOVER,
        f"a prefill leg ended with {answer.finish_reason}, not handover",
    )
    require(answer.usage is not None, "the last chunk has no usage")
    require_settled(engine, before)


async def finished_prefill_does_not_hand_over(bench: EngineBench) -> None:
    """When the first token finishes the request, the prefill leg ends it and holds nothing."""
    engine = await bench.engine(Role.PREFILL)
    before = engine.load()
    answer = await read_all(engine, bench.greedy(num_tokens=1, role=Role.PREFILL))
    require(
        answer.finish_reason is FinishReason.LENGTH,
        f"a prefill leg with max_tokens=1 ended with {answer.finish_reason}, not length",
    )
    require_settled(engine, before)


async def both_legs_give_the_whole_output(bench: EngineBench) -> None:
    """Prefill on one engine, hand-over, decode on another: the tokens of an aggregated run, and nothing
    is held on either side."""
    prefill, decode = await bench.engine(Role.PREFILL), await bench.engine(Role.DECODE)
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    before = prefill.load(), decode.load()
    for seed in range(3):
        first, rest = await _both_legs(prefill, decode, bench.greedy(seed, num_tokens=9))
        joined = first.token_ids + rest.token_ids
        require(len(joined) == 9, f"the two legs gave {len(joined)} tokens of 9")
        whole = (await read_all(decode, bench.greedy(seed, num_tokens=9))).token_ids
        require(joined == whole, f"the two legs gave {joined}, one engine {whole}")
    require_settled(prefill, before[0])
    require_settled(decode, before[1])


async def release_is_idempotent(bench: EngineBench) -> None:
    """``release_blocks`` ignores unknown ids, and may be called twice."""
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
    """Reserved blocks cover the known tokens, and come back when they are released."""
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


async def _both_legs(prefill: Engine, decode: Engine, request: GenerateRequest) -> tuple[Answer, Answer]:
    first_leg = msgspec.structs.replace(request, role=Role.PREFILL)
    first = await read_all(prefill, first_leg)
    second_leg = msgspec.structs.replace(
        request, role=Role.DECODE, generated=pack_tokens(first.token_ids), kv_transfer=first.kv_transfer
    )
    if isinstance(prefill, ExposesBlocks) and isinstance(decode, ExposesBlocks):
        await _copy_blocks(prefill, decode, second_leg)
    elif first.kv_transfer is None:
        raise NotApplicable("the engine neither exposes blocks nor answers with a ticket")
    return first, await read_all(decode, second_leg)


async def _copy_blocks(prefill: ExposesBlocks, decode: ExposesBlocks, request: GenerateRequest) -> None:
    held = prefill.held_blocks(request.request_id)
    block_bytes = prefill.block_memory.layout.block_bytes
    data = memoryview(bytearray(len(held) * block_bytes))
    prefill.block_memory.read(held, data)
    prefill.release_blocks(request.request_id)
    reservation = await decode.reserve_blocks(request)
    num_cached = reservation.num_cached_blocks
    wanted = reservation.block_ids[num_cached:]
    require(
        len(held) >= len(reservation.block_ids),
        f"prefill holds {len(held)} blocks, decode reserved {len(reservation.block_ids)}",
    )
    if wanted:
        end = len(reservation.block_ids) * block_bytes
        decode.block_memory.write(wanted, data[num_cached * block_bytes : end])


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
