"""A second engine answers from the tiers of a first one: the same tokens, whatever happens to the first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.services.kv_sharing import serve_tiers, trusting
from dynamo_sdk.stores import PeerServer, PeerStore, PeerStoreConfig
from dynamo_sdk.types import GenerateRequest, KVSource, KVTier, SamplingParams

from .models import random_prompt
from .running import a_request, answer, assert_all_free
from .test_tiers import blocks_of, offloaded
from .tiers import BLOCK_SIZE, TieredEngine, disk, ram, tier, tiered_engine

pytestmark = pytest.mark.anyio

PROMPT = random_prompt(3, 90)
NUM_BLOCKS = (len(PROMPT) - 1) // BLOCK_SIZE
SAMPLING = SamplingParams(max_tokens=12, temperature=0.8, seed=5, repetition_penalty=1.1)
SECRET = "known to both"


def shared(secret: str | None = SECRET, **settings: Any) -> KVTierSetup:
    def build(size: int) -> PeerStore:
        return PeerStore(PeerStoreConfig(block_bytes=size, timeout_s=1.0, **settings))

    return tier("shared", trusting(build, secret), kind=KVTier.REMOTE, capacity_bytes=None)


@asynccontextmanager
async def serving(engine: TieredEngine) -> AsyncGenerator[tuple[PeerServer, str], None]:
    shared = await serve_tiers(engine, (), "tcp:127.0.0.1:0", SECRET)
    assert shared is not None
    assert shared.server is not None
    try:
        yield shared.server, shared.address
    finally:
        await shared.close()


def asking(address: str | None, name: str, num_blocks: int = NUM_BLOCKS) -> GenerateRequest:
    source = None
    if address is not None:
        source = KVSource(worker_id="first", address=address, num_blocks=num_blocks)
    return msgspec.structs.replace(a_request(PROMPT, SAMPLING, request_id=name), kv_source=source)


async def num_cached(engine: TieredEngine, request: GenerateRequest, expected: list[int]) -> int:
    found = await answer(engine, request)
    assert found.token_ids == expected
    assert found.last.usage is not None
    return found.last.usage.num_cached_tokens


@asynccontextmanager
async def first_engine(
    llama: Path, *tiers: KVTierSetup
) -> AsyncGenerator[tuple[TieredEngine, list[int]], None]:
    """One that has computed ``PROMPT`` and brought it down, with its tokens."""
    async with tiered_engine(llama, *(tiers or (ram(),)), shared()) as engine:
        found = await answer(engine, asking(None, "first"))
        await offloaded(engine)
        yield engine, found.token_ids


async def test_from_the_ram_of_another_worker(llama: Path) -> None:
    async with first_engine(llama) as (first, expected), tiered_engine(llama, ram(), shared()) as second:
        async with serving(first) as (server, address):
            assert await num_cached(second, asking(None, "unhinted"), expected) == 0
            assert server.statistics().num_asks == 0
            await offloaded(second)
            second_ram = second.tiers.tiers[0].store
            await second_ram.delete(list(second.tiers._contents._tiers[0].held))

            assert await num_cached(second, asking(address, "hinted"), expected) == NUM_BLOCKS * BLOCK_SIZE
            facts = blocks_of(second, "shared")
            assert facts.counts.num_onboarded_blocks == NUM_BLOCKS
            assert facts.store.num_failures == 0
            assert facts.counts.num_offloaded_blocks_from_device == facts.num_queued_blocks == 0
            assert_all_free(second)

            # What was read is its own now: it spread, and nobody is asked again.
            await offloaded(second)
            num_asks = server.statistics().num_asks
            assert await num_cached(second, asking(address, "again"), expected) == NUM_BLOCKS * BLOCK_SIZE
            assert blocks_of(second, "ram").counts.num_onboarded_blocks == NUM_BLOCKS
            assert server.statistics().num_asks == num_asks


async def test_from_the_disk_of_another_worker(llama: Path, tmp_path: Path) -> None:
    async with first_engine(llama, disk(tmp_path)) as (first, expected):
        async with serving(first) as (_, address), tiered_engine(llama, shared()) as second:
            assert await num_cached(second, asking(address, "r"), expected) == NUM_BLOCKS * BLOCK_SIZE


async def test_the_next_turn_reads_the_answer_of_the_last_one(llama: Path) -> None:
    """Whoever decoded it has its blocks, too."""
    async with tiered_engine(llama, ram(), shared()) as first, tiered_engine(llama, shared()) as second:
        long = msgspec.structs.replace(SAMPLING, max_tokens=40, ignore_eos=True)
        said = (await answer(first, a_request(PROMPT, long))).token_ids
        turn = PROMPT + said + random_prompt(8, 6)
        await offloaded(first)
        async with serving(first) as (_, address):
            num_blocks = (len(PROMPT) + len(said) - 1) // BLOCK_SIZE
            source = KVSource(worker_id="first", address=address, num_blocks=num_blocks)
            request = a_request(turn, SAMPLING, request_id="next")
            found = await answer(second, msgspec.structs.replace(request, kv_source=source))
            assert found.last.usage is not None
            assert found.last.usage.num_cached_tokens == num_blocks * BLOCK_SIZE
            assert found.token_ids == (await answer(first, request)).token_ids


async def test_a_hint_that_promises_too_much(llama: Path) -> None:
    async with first_engine(llama) as (first, expected), serving(first) as (_, address):
        store, keys = first.tiers.tiers[0].store, list(first.tiers._contents._tiers[0].held)
        await store.delete(keys[10:])
        async with tiered_engine(llama, shared()) as second:
            assert await num_cached(second, asking(address, "r", 1000), expected) == 10 * BLOCK_SIZE
            assert_all_free(second)


async def test_another_secret_is_a_miss(llama: Path) -> None:
    async with first_engine(llama) as (first, expected), serving(first) as (_, address):
        async with tiered_engine(llama, shared("another")) as second:
            assert await num_cached(second, asking(address, "r"), expected) == 0
            assert blocks_of(second, "shared").store.num_failures > 0


async def test_one_that_is_gone_is_a_miss(llama: Path) -> None:
    async with first_engine(llama) as (first, expected):
        async with serving(first) as (_, address):
            pass
        async with tiered_engine(llama, shared()) as second:
            assert await num_cached(second, asking(address, "r"), expected) == 0


@pytest.mark.parametrize("num_bytes", [0, 100, 5000, 40_000])
async def test_one_that_dies_or_hangs_in_the_middle(llama: Path, num_bytes: int) -> None:
    """A relay passes on so many bytes of the answer; then it ends the connection, the next time it says no
    more."""
    async with first_engine(llama) as (first, expected), serving(first) as (_, address):
        for hangs in (False, True):
            async with (
                relay(address, num_bytes, hangs) as relayed,
                tiered_engine(llama, shared(None)) as second,
            ):
                second.tiers.tiers[0].store.trust(SECRET.encode())
                async with asyncio.timeout(20):
                    await num_cached(second, asking(relayed, "r"), expected)
                assert_all_free(second)


@asynccontextmanager
async def relay(address: str, num_bytes: int, hangs: bool) -> AsyncGenerator[str, None]:
    _, host, port = address.split(":")
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there, back = await asyncio.open_connection(host, int(port))
        upwards = asyncio.create_task(_copy(reader, back))
        tasks.add(upwards)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            left = num_bytes
            while left and (data := await there.read(left)):
                writer.write(data)
                left -= len(data)
            await writer.drain()
            if hangs:
                await asyncio.Event().wait()
        upwards.cancel()
        for each in (writer, back):
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        while data := await reader.read(1 << 16):
            writer.write(data)
