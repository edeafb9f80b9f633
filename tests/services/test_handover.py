"""Hand-over between engines whose next token is a checksum of their KV: a wrong block, a wrong token."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from dynamo_sdk.errors import Overloaded, TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.interfaces import BlockReservation
from dynamo_sdk.runtime.clock import SystemClock, settle
from dynamo_sdk.services.handover import BlockHandover
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    Role,
    SamplingParams,
    pack_tokens,
)
from tests.testing.paged_engine import PagedEngine

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 31))


@dataclass(slots=True)
class Side:
    engine: PagedEngine
    handover: BlockHandover


@pytest.fixture
async def sides(tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    both: list[Side] = []
    for name in ("p", "d"):
        engine = PagedEngine()
        await engine.start()
        side = Side(engine, BlockHandover(engine, engine, SystemClock(), secret="s"))
        await side.handover.start(f"unix:{tmp_path}/{name}")
        both.append(side)
    yield both[0], both[1]
    for side in both:
        await side.handover.close()
        side.engine.check_integrity()
        await side.engine.close()


def request(role: Role, **changes: object) -> GenerateRequest:
    plain = GenerateRequest(
        request_id="r",
        model="m",
        prompt=pack_tokens(PROMPT),
        sampling=SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True),
        role=role,
    )
    return msgspec.structs.replace(plain, **changes)


async def run(side: Side, asked: GenerateRequest) -> list[GenerateChunk]:
    async with aclosing(side.handover.generate(asked)) as chunks:
        return [chunk async for chunk in chunks]


def tokens(chunks: list[GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def num_busy_blocks(side: Side) -> int:
    load = side.engine.load()
    return load.num_blocks - load.num_free_blocks


async def prefilled(side: Side) -> tuple[list[int], KVTransferParams]:
    chunks = await run(side, request(Role.PREFILL))
    assert chunks[-1].finish_reason is FinishReason.HANDOVER
    ticket = chunks[-1].kv_transfer
    assert ticket is not None
    assert ticket.connector == "direct"
    return tokens(chunks), ticket


async def test_both_legs_give_what_one_worker_gives(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    whole = tokens(await run(prefill, request(Role.AGGREGATED)))
    first, ticket = await prefilled(prefill)
    busy = num_busy_blocks(prefill)
    asked = request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket)
    chunks = await run(decode, asked)
    assert first + tokens(chunks) == whole
    timing = chunks[-1].timing
    assert timing is not None
    assert timing.transfer_back_end == "unix"
    assert timing.transfer_bytes == -(-len(PROMPT) // 4) * decode.engine.block_memory.layout.block_bytes
    await settle()
    assert num_busy_blocks(prefill) < busy, "fetched blocks are given back"


async def test_only_what_decode_lacks_is_moved(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = sides
    whole = tokens(await run(prefill, request(Role.AGGREGATED)))
    first, ticket = await prefilled(prefill)
    memory = decode.engine.block_memory
    reserve = decode.engine.reserve_blocks

    async def reserve_with_two_cached(asked: GenerateRequest) -> BlockReservation:
        reservation = await reserve(asked)
        cached = bytearray(2 * memory.layout.block_bytes)
        prefill.engine.block_memory.read(prefill.engine.held_blocks("r")[:2], memoryview(cached))
        memory.write(reservation.block_ids[:2], memoryview(cached))
        return dataclasses.replace(reservation, num_cached_blocks=2)

    monkeypatch.setattr(decode.engine, "reserve_blocks", reserve_with_two_cached)
    chunks = await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket))
    assert first + tokens(chunks) == whole
    timing = chunks[-1].timing
    assert timing is not None
    assert timing.transfer_bytes == (-(-len(PROMPT) // 4) - 2) * memory.layout.block_bytes


async def test_a_ticket_is_good_for_one_fetch(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    first, ticket = await prefilled(prefill)
    await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket))
    again = request(Role.DECODE, request_id="again", generated=pack_tokens(first), kv_transfer=ticket)
    before = num_busy_blocks(decode)
    with pytest.raises(TicketUnknown):
        await run(decode, again)
    assert num_busy_blocks(decode) == before, "the reservation was given back"


@pytest.mark.parametrize("difference", ["prompt", "generated", "adapter"])
async def test_a_ticket_for_other_kv_is_refused(
    sides: tuple[Side, Side], difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of the right number and layout, but not of this request: they would be found by its keys."""
    prefill, decode = sides
    first, ticket = await prefilled(prefill)
    asked = request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket)
    if difference == "prompt":
        asked = msgspec.structs.replace(asked, prompt=pack_tokens(PROMPT[::-1]))
    elif difference == "generated":
        asked = msgspec.structs.replace(asked, generated=pack_tokens([*first, 1]))
    else:
        monkeypatch.setattr(decode.engine, "kv_identity", lambda _: b"another version of the adapter")
    before = num_busy_blocks(decode)
    with pytest.raises(TicketUnknown, match="other tokens or another adapter"):
        await run(decode, asked)
    assert num_busy_blocks(decode) == before


async def test_released_blocks_cannot_be_fetched(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    before = num_busy_blocks(prefill)
    first, ticket = await prefilled(prefill)
    prefill.handover.release("r")
    prefill.handover.release("r")
    assert num_busy_blocks(prefill) == before
    with pytest.raises(TransferError):
        await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket))


async def test_a_ticket_without_time_left_is_not_even_tried(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    first, ticket = await prefilled(prefill)
    late = msgspec.structs.replace(ticket, ttl_s=0.0)
    with pytest.raises(TicketExpired):
        await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=late))
    assert decode.handover.fetcher.statistics().num_fetching == 0


async def test_a_dead_prefill_worker_is_a_transfer_error(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    first, ticket = await prefilled(prefill)
    await prefill.handover.close()
    before = num_busy_blocks(decode)
    with pytest.raises(TransferError):
        await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket))
    assert num_busy_blocks(decode) == before


async def test_an_engine_that_refuses_after_the_fetch_keeps_no_blocks(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = sides
    first, ticket = await prefilled(prefill)
    before = num_busy_blocks(decode)

    async def refuse(asked: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        if num_busy_blocks(decode) > before:
            raise Overloaded("full")
        yield GenerateChunk()

    monkeypatch.setattr(decode.engine, "generate", refuse)
    with pytest.raises(Overloaded):
        await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket))
    assert num_busy_blocks(decode) == before


async def test_leaving_during_prefill_holds_nothing(sides: tuple[Side, Side]) -> None:
    prefill, _ = sides
    before = num_busy_blocks(prefill)
    chunks = prefill.handover.generate(request(Role.PREFILL))
    await anext(chunks)
    await chunks.aclose()
    await asyncio.sleep(0)
    assert num_busy_blocks(prefill) == before
    assert prefill.handover.server.statistics().num_live_tickets == 0


async def test_draining_waits_for_what_was_handed_over(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    await prefill.handover.drain()
    first, ticket = await prefilled(prefill)
    draining = asyncio.create_task(prefill.handover.drain())
    await settle()
    assert not draining.done()
    await run(decode, request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket))
    await draining


async def test_draining_waits_for_a_leg_that_still_waits_for_blocks(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = sides
    first, ticket = await prefilled(prefill)
    reserve, room = decode.engine.reserve_blocks, asyncio.Event()

    async def reserve_later(asked: GenerateRequest) -> BlockReservation:
        await room.wait()
        return await reserve(asked)

    monkeypatch.setattr(decode.engine, "reserve_blocks", reserve_later)
    asked = request(Role.DECODE, generated=pack_tokens(first), kv_transfer=ticket)
    leg = asyncio.create_task(run(decode, asked))
    await settle()
    await decode.engine.drain()
    draining = asyncio.create_task(decode.handover.drain())
    await settle()
    assert not draining.done()
    room.set()
    await draining
    assert tokens(await leg)
