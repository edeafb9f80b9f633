"""Engine checks: hand-overs that are given up, and peers that are gone."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from dynamo_sdk.errors import DynamoError
from dynamo_sdk.interfaces import Engine, ExposesBlocks
from dynamo_sdk.transfer import BlockFetcher, BlockServer
from dynamo_sdk.types import GenerateRequest, Role

from .engine_bench import EngineBench, greedy, require_settled
from .engine_legs import Legs
from .report import CheckFailed, NotApplicable, require
from .streams import generate_request, read_all

_FETCH_TIMEOUT_S = 10.0
_MOST_RESERVATIONS = 64


async def abort_before_the_transfer(bench: EngineBench) -> None:
    """A hand-over that nobody fetches can be given up: the prefill side is as before, and serves on.

    The client may leave between the legs. ``release_blocks`` gives the blocks back; an engine that guards
    them itself lets them expire. In a rendezvous, either leg may wait for one that never comes.
    """
    legs = await Legs.of(bench)
    async with _settled(bench, legs):
        request = _request(bench, 2001)
        if legs.is_rendezvous:
            other = _request(bench, 2001)
            await _give_up(legs.prefill, legs.prefill_request(request))
            await _give_up(legs.decode, legs.decode_request(other, None))
            return
        await read_all(legs.prefill, legs.prefill_request(request))
        if isinstance(legs.prefill, ExposesBlocks):
            legs.prefill.release_blocks(request.request_id)


async def abort_during_the_transfer(bench: EngineBench) -> None:
    """A decode leg that is given up while it waits for KV leaves nothing: neither blocks, nor half-filled
    ones that a later prompt would find.

    Put blocks into the prefix cache when they are filled and the request runs, not when they are reserved.
    """
    legs = await Legs.of(bench)
    request = _request(bench, 2002)
    async with _settled(bench, legs):
        if legs.is_rendezvous:
            second = legs.decode_request(request, None)
            await _give_up(legs.prefill, legs.prefill_request(request), (legs.decode, second))
        else:
            await _give_up_the_fetch(legs, request)
    if bench.is_exact:
        after = await _whole(legs, _request(bench, 2002))
        other = await bench.any_engine()
        expected = (await read_all(other, _request(bench, 2002))).token_ids
        require(after == expected, f"after a transfer that was given up came {after}, not {expected}")


async def abort_after_the_transfer(bench: EngineBench) -> None:
    """A decode leg that is given up after its first token leaves nothing on either side.

    From then on the blocks are the running sequence's, and go with it.
    """
    legs = await Legs.of(bench)
    request = _request(bench, 2003)
    async with _settled(bench, legs):
        if legs.is_rendezvous:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_all, legs.prefill, legs.prefill_request(request))
                await _first_token_only(legs.decode, legs.decode_request(request, None))
            return
        first = await read_all(legs.prefill, legs.prefill_request(request))
        second = legs.decode_request(request, first)
        await legs.transfer(second)
        await _first_token_only(legs.decode, second)


async def cancelled_reservation_leaves_nothing(bench: EngineBench) -> None:
    """Cancelling ``reserve_blocks`` leaves nothing reserved.

    It waits while memory is short, and that is when clients leave. Take the request out of the queue in a
    ``finally``, and give back what it had got.
    """
    engine = await bench.engine(Role.DECODE)
    if not isinstance(engine, ExposesBlocks):
        raise NotApplicable("the engine does not expose its blocks")
    before = engine.load()
    if before is None:
        raise NotApplicable("load() tells nothing, so memory cannot be filled")
    length = (await bench.facts(Role.DECODE)).context_length // 2
    num_blocks = -(-length // engine.block_memory.layout.block_size)
    num_fitting = before.num_free_blocks // num_blocks
    if num_fitting > _MOST_RESERVATIONS:
        raise NotApplicable("the engine has more memory than is filled here; check one with less")
    requests = [_reservation(bench, 2100 + number, length) for number in range(num_fitting + 1)]
    try:
        for request in requests[:-1]:
            await engine.reserve_blocks(request)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.reserve_blocks, requests[-1])
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    finally:
        for request in requests[:-1]:
            engine.release_blocks(request.request_id)
    require_settled(engine, before)


async def lost_peer_is_an_error_in_time(bench: EngineBench) -> None:
    """When the prefill side is gone, the decode leg fails with an error of the SDK, soon, and leaves nothing;
    it never goes on with wrong KV.

    The request is then prefilled again elsewhere. Give every wait for a peer a deadline, and believe copied
    bytes only when the peer has confirmed them.
    """
    decode = (await Legs.of(bench)).decode
    before = decode.load()
    peer = bench.new_engine(Role.PREFILL)
    request = _request(bench, 2004)
    first = None
    try:
        facts = await peer.start()
        legs = Legs(peer, decode, bench.connector, facts.handover_address)
        if not legs.is_rendezvous:
            first = await read_all(peer, legs.prefill_request(request))
        second = legs.decode_request(request, first)
        if isinstance(peer, ExposesBlocks) and isinstance(decode, ExposesBlocks):
            await _fetch_from_a_lost_server(peer, decode, second)
            tokens = None
        else:
            await peer.close()
            tokens = await _tokens_or_error(decode, second)
    finally:
        await peer.close()
    require_settled(decode, before)
    if tokens is not None and bench.is_exact:
        whole = (await read_all(await legs.alone(bench), _request(bench, 2004))).token_ids
        joined = tokens if first is None else legs.joined(first, tokens)
        require(joined == whole, f"without its peer the request gave {joined}, not {whole}")


async def _fetch_from_a_lost_server(
    peer: ExposesBlocks, decode: ExposesBlocks, request: GenerateRequest
) -> None:
    server, fetcher = BlockServer(), BlockFetcher()
    with tempfile.TemporaryDirectory() as folder:
        try:
            await server.start([f"unix:{Path(folder) / 'blocks'}"])
            ticket = server.issue(
                request.request_id,
                peer.held_blocks(request.request_id),
                peer.block_memory,
                ttl_s=60.0,
                release=lambda: peer.release_blocks(request.request_id),
            )
            await server.close()
            reservation = await decode.reserve_blocks(request)
            wanted = list(enumerate(reservation.block_ids))[reservation.num_cached_blocks :]
            await fetcher.fetch(ticket, wanted, decode.block_memory, timeout_s=_FETCH_TIMEOUT_S)
        except DynamoError:
            return
        finally:
            decode.release_blocks(request.request_id)
            await fetcher.close()
            await server.close()
    raise CheckFailed("blocks were fetched from a server that was gone")


async def _tokens_or_error(decode: Engine, request: GenerateRequest) -> list[int] | None:
    try:
        return (await read_all(decode, request)).token_ids
    except DynamoError:
        return None


async def _fill_halfway(decode: ExposesBlocks, request: GenerateRequest) -> None:
    """Reserve, and write rubbish into the first block that must be filled."""
    reservation = await decode.reserve_blocks(request)
    wanted = reservation.block_ids[reservation.num_cached_blocks :]
    if wanted:
        rubbish = memoryview(bytearray(decode.block_memory.layout.block_bytes))
        decode.block_memory.write(wanted[:1], rubbish)


def _reservation(bench: EngineBench, seed: int, num_tokens: int) -> GenerateRequest:
    prompt, generated = bench.prompt(seed, num_tokens), bench.prompt(8, 1)
    return generate_request(prompt, greedy(6), generated=generated, role=Role.DECODE)


def _request(bench: EngineBench, seed: int) -> GenerateRequest:
    """A prompt of its own, three blocks long and a bit where there are blocks."""
    return generate_request(bench.prompt(seed, 51), greedy(6))


async def _give_up(engine: Engine, request: GenerateRequest, *others: tuple[Engine, GenerateRequest]) -> None:
    """Start it, with others, and cancel all once they wait."""
    async with anyio.create_task_group() as tasks:
        for each, asked in ((engine, request), *others):
            tasks.start_soon(read_all, each, asked)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def _give_up_the_fetch(legs: Legs, request: GenerateRequest) -> None:
    first = await read_all(legs.prefill, legs.prefill_request(request))
    second = legs.decode_request(request, first)
    if isinstance(legs.decode, ExposesBlocks) and isinstance(legs.prefill, ExposesBlocks):
        await _fill_halfway(legs.decode, second)
        legs.decode.release_blocks(request.request_id)
        legs.prefill.release_blocks(request.request_id)
    else:
        await _give_up(legs.decode, second)


async def _first_token_only(engine: Engine, request: GenerateRequest) -> None:
    stream = engine.generate(request)
    await anext(stream)
    await stream.aclose()


async def _whole(legs: Legs, request: GenerateRequest) -> list[int]:
    """From the decode engine: by both legs where it has no other way."""
    if legs.is_rendezvous:
        return await legs.run(request)
    return (await read_all(legs.decode, request)).token_ids


@asynccontextmanager
async def _settled(bench: EngineBench, legs: Legs) -> AsyncIterator[None]:
    """Both engines hold afterwards what they held before (where they can tell), and answer."""
    before = legs.prefill.load(), legs.decode.load()
    yield
    require_settled(legs.decode, before[1])
    if isinstance(legs.prefill, ExposesBlocks) or legs.is_rendezvous:
        require_settled(legs.prefill, before[0])
    if legs.is_rendezvous:
        require(bool(await legs.run(bench.greedy(num_tokens=2))), "the next request got no token")
        return
    for engine in (legs.prefill, legs.decode):
        answer = await read_all(engine, bench.greedy(num_tokens=1))
        require(bool(answer.token_ids), "the next request got no token")


TRANSFER_CHECKS = (
    abort_before_the_transfer,
    abort_during_the_transfer,
    abort_after_the_transfer,
    cancelled_reservation_leaves_nothing,
    lost_peer_is_an_error_in_time,
)
