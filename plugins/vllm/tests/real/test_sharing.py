"""One real vLLM reads what another one's tiers hold: the same tokens, whatever happens to the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch
from msgspec.structs import replace

from dynamo_sdk.interfaces import KVSharing, KVTierStatistics, ServedTiers
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import Answer, generate_request, read_all
from dynamo_sdk.types import KVSource, Role, SamplingParams
from dynamo_sdk.types.plan import KVTierPlan
from dynamo_sdk_vllm.engine import VllmEngine
from dynamo_sdk_vllm.tiers.config import Shard, setups_of

from .conftest import vllm_engine

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
NUM_TOKENS, NUM_BLOCKS = 300, 9
"""Of each prompt, of 32 tokens each; its last block is not full."""
SECRET = "known to both"


def prompt(number: int) -> list[int]:
    return [(11 * token + 37 * number) % 900 + 20 for token in range(NUM_TOKENS)]


@dataclass(frozen=True)
class Reader:
    """An engine with a tier ``ram`` and one that reads others; ``processes`` are vLLM's own."""

    engine: VllmEngine
    processes: list[psutil.Process]

    @property
    def served(self) -> ServedTiers:
        served = self.engine.readable_tiers()
        assert served is not None
        return served

    async def ask(
        self,
        asked: int | list[int],
        address: str | None = None,
        *,
        num_blocks: int = NUM_BLOCKS,
        **facts: object,
    ) -> Answer:
        """``asked``: a prompt, or the number of one. ``address``: where its first ``num_blocks`` are said to
        be."""
        tokens = prompt(asked) if isinstance(asked, int) else asked
        request = replace(generate_request(tokens, GREEDY), **facts)
        if address is not None:
            source = KVSource(worker_id="other", address=address, num_blocks=num_blocks)
            request = replace(request, kv_source=source)
        return await read_all(self.engine, request)

    async def tier(self, name: str) -> KVTierStatistics:
        """As vLLM says with a step: that of a request whose prompt is too short for any tier."""
        await read_all(self.engine, generate_request([5, 6, 7], replace(GREEDY, max_tokens=1)))
        (found,) = (tier for tier in self.engine.kv_tier_statistics().tiers if tier.name == name)
        return found


@asynccontextmanager
async def reading(role: Role = Role.AGGREGATED, **args: object) -> AsyncIterator[Reader]:
    plans = [
        KVTierPlan(name="ram", kind="ram", capacity_bytes=64 << 20),
        KVTierPlan(name="shared", kind="shared", args={"timeout_s": 20.0}),
    ]
    before = set(psutil.Process().children(recursive=True))
    engine = vllm_engine(
        role,
        kv_tiers=setups_of(plans, Registry.of(), Shard()),
        kv_sharing=KVSharing(address="tcp:127.0.0.1:0", secret=SECRET),
        **{"kv_onboarding": "always", **args},
    )
    try:
        await engine.start()
        yield Reader(engine, list(set(psutil.Process().children(recursive=True)) - before))
    finally:
        await engine.close()


def num_cached(answer: Answer) -> int:
    assert answer.usage is not None
    return answer.usage.num_cached_tokens


@pytest.fixture(scope="module")
async def expected() -> Callable[[int], list[int]]:
    """What a vLLM without tiers says. It is gone then: three at once are too many for some machines."""
    engine = vllm_engine(Role.AGGREGATED)
    await engine.start()
    try:
        answers = [await read_all(engine, generate_request(prompt(number), GREEDY)) for number in range(6)]
    finally:
        await engine.close()
    return lambda number: answers[number].token_ids


async def test_each_reads_what_the_other_has_computed(expected: Callable[[int], list[int]]):
    async with reading() as first, reading() as second:
        for owner, reader, number in ((first, second, 0), (second, first, 1)):
            assert (await owner.ask(number)).token_ids == expected(number)
            assert (await owner.tier("ram")).store.num_blocks >= NUM_BLOCKS
            answer = await reader.ask(number, owner.served.address)
            assert (answer.token_ids, num_cached(answer)) == (expected(number), NUM_BLOCKS * 32)
            shared = await reader.tier("shared")
            assert (shared.counts.num_onboarded_blocks, shared.store.num_failures) == (NUM_BLOCKS, 0)
            assert shared.counts.num_hit_blocks == NUM_BLOCKS
            await owner.tier("ram")
            assert owner.served.statistics().num_blocks == NUM_BLOCKS

        # what was read has spread: it is in the reader's own RAM now
        assert (await second.tier("ram")).store.num_blocks >= 2 * NUM_BLOCKS

        # nobody gets another tenant's blocks, and a hint that promises too much costs nothing but time
        tenant = await second.ask(0, first.served.address, cache_salt="tenant")
        assert (tenant.token_ids, num_cached(tenant)) == (expected(0), 0)
        await first.ask(2)
        await first.tier("ram")
        promised = await second.ask(3, first.served.address)
        assert (promised.token_ids, num_cached(promised)) == (expected(3), 0)
        less = await second.ask(2, first.served.address, num_blocks=4)
        assert (less.token_ids, num_cached(less)) == (expected(2), 4 * 32)


async def test_without_a_measurement_nothing_is_loaded_and_then_it_is(expected: Callable[[int], list[int]]):
    """The first hint has the way measured, beside the request that computes."""
    async with reading() as first, reading(kv_onboarding="measured") as second:
        for number in range(6):
            await first.ask(number)
        await first.tier("ram")
        for number in range(6):
            answer = await second.ask(number, first.served.address)
            assert answer.token_ids == expected(number)
        decisions = second.engine.kv_tier_statistics().num_decisions
        assert decisions["unmeasured"] >= 1
        assert sum(decisions.values()) == 6
        assert decisions["unmeasured"] < 6, "what was measured is not forgotten"
        await first.ask(0)
        assert first.served.statistics().num_blocks >= 1 + NUM_BLOCKS


async def test_a_prefill_worker_reads_the_last_answer_from_the_decode_worker():
    """Beside the hand-over over NIXL, whose tickets and whose hints travel with the same requests."""
    long = replace(GREEDY, max_tokens=60)
    async with reading(Role.PREFILL) as prefill, reading(Role.DECODE) as decode:

        async def answer(asked: list[int], name: str, num_cached_tokens: int, **hint: Any) -> list[int]:
            facts = {"request_id": name, "sampling": long}
            first = await prefill.ask(asked, role=Role.PREFILL, **facts, **hint)
            assert num_cached(first) == num_cached_tokens
            return (
                await decode.ask(asked, role=Role.DECODE, kv_transfer=first.kv_transfer, **facts)
            ).token_ids

        said = await answer(prompt(0), "first", 0)
        turn = [*prompt(0), *said, *range(100, 120)]
        await decode.tier("ram")
        num_blocks = (len(prompt(0)) + len(said) - 1) // 32
        hint = {"address": decode.served.address, "num_blocks": num_blocks}
        assert num_blocks > NUM_BLOCKS, "the answer fills a block"
        said_then = await answer(turn, "next", num_blocks * 32, **hint)
        assert (await prefill.tier("shared")).counts.num_onboarded_blocks == num_blocks - NUM_BLOCKS
        alone = await decode.ask(turn, request_id="alone", sampling=long, cache_salt="nobody else has it")
        assert (alone.token_ids, num_cached(alone)) == (said_then, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs two GPUs for each of two workers")
async def test_each_process_of_a_tensor_parallel_worker_reads_its_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    async with (
        reading(tensor_parallel_size=2) as first,
        reading(tensor_parallel_size=2) as second,
    ):
        computed = await first.ask(0)
        await first.tier("ram")
        answer = await second.ask(0, first.served.address)
        assert (answer.token_ids, num_cached(answer)) == (computed.token_ids, NUM_BLOCKS * 32)
        assert (await second.tier("shared")).counts.num_onboarded_blocks == 2 * NUM_BLOCKS
        await first.tier("ram")
        assert first.served.statistics().num_blocks == 2 * NUM_BLOCKS


@asynccontextmanager
async def cutting(address: str, num_bytes: int, on_cut: Callable[[], None]) -> AsyncIterator[str]:
    """What listens at ``address``, by another one; once ``num_bytes`` have come from it, it is cut off."""
    host, port = address.removeprefix("tcp:").split(":")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: float) -> bool:
        """Whether the limit was reached."""
        while limit > 0 and (data := await source.read(int(min(limit, 1 << 14)))):
            limit -= len(data)
            sink.write(data)
            await sink.drain()
        return limit <= 0

    async def serve(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        asking = asyncio.create_task(pump(source, back, float("inf")))
        with contextlib.suppress(ConnectionError):
            if await pump(there, sink, num_bytes):
                on_cut()
        asking.cancel()
        for end in (back, sink):
            end.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_worker_that_is_killed_while_it_is_read(expected: Callable[[int], list[int]]):
    async with reading() as first, reading() as second:
        await first.ask(0)
        await first.ask(1)
        store = (await first.tier("ram")).store
        address, block_bytes = first.served.address, store.used_bytes // store.num_blocks
        killed = []

        def kill() -> None:
            for process in first.processes:
                process.kill()
                killed.append(process)

        async with cutting(address, block_bytes * NUM_BLOCKS // 2, kill) as cut:
            answer = await second.ask(0, cut)
        assert killed, "nothing was being read"
        assert answer.token_ids == expected(0)
        assert num_cached(answer) < NUM_BLOCKS * 32
        assert (await second.tier("shared")).store.num_failures > 0

        gone = await second.ask(1, address)  # it has been dead for a while
        assert (gone.token_ids, num_cached(gone)) == (expected(1), 0)
        for _ in range(2):  # what was computed then is as good as any
            again = await second.ask(0)
            assert (again.token_ids, num_cached(again)) == (expected(0), NUM_BLOCKS * 32)
