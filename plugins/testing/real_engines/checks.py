"""What any real engine has to do, beyond the conformance kit; each is given one that runs."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import Engine, PublishesKVEvents
from dynamo_sdk.testing import generate_request, read_all
from dynamo_sdk.types import BlocksStored, KVEventBatch, SamplingParams

from .models import greedy_of, reference

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
PROMPTS = [list(range(10, 17)), list(range(10, 138)), [7 * token % 1000 + 10 for token in range(300)]]


class Publishing(Engine, PublishesKVEvents):
    """An engine with KV events."""


async def check_greedy_is_that_of_transformers(engine: Engine) -> None:
    model = reference()
    for prompt in PROMPTS:
        request = generate_request(prompt, SamplingParams(max_tokens=24, min_tokens=24, temperature=0.0))
        assert (await read_all(engine, request)).token_ids == greedy_of(model, prompt)


async def check_events_say_what_is_held(engine: Publishing, *, block_size: int) -> None:
    """One listener from now on, a snapshot of what was before; salts reach every block."""
    batches: list[KVEventBatch] = []
    has_come = anyio.Event()

    def listen(batch: KVEventBatch) -> None:
        batches.append(batch)
        has_come.set()

    engine.subscribe_kv_events(listen)
    request = generate_request([5 * token % 800 + 30 for token in range(100)], GREEDY)
    await read_all(engine, replace(request, cache_salt="tenant"))
    with anyio.fail_after(10):
        await has_come.wait()
    events = [event for batch in batches for event in batch.events if isinstance(event, BlocksStored)]
    assert events[0].parent_hash is None
    assert {event.cache_salt for event in events} == {"tenant"}
    assert {event.block_size for event in events} == {block_size}
    (snapshot,) = engine.kv_snapshot()
    held = [event for event in snapshot.events if isinstance(event, BlocksStored)]
    assert _names_of(held) >= _names_of(events)


def _names_of(events: list[BlocksStored]) -> set[int | bytes]:
    return {name for event in events for name in event.block_hashes}


async def check_smaller_priorities_run_first(engine: Engine) -> None:
    """With eight at once, the ninth to be finished is the one that came last and was urgent."""
    done: list[int] = []

    async def ask(number: int, priority: int) -> None:
        request = generate_request([number + 50] * 40, GREEDY)
        await read_all(engine, replace(request, priority=priority))
        done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(24):
            tasks.start_soon(ask, number, -1 if number == 23 else 5)
    assert done.index(23) < 16


async def check_two_ranks_have_caches_and_events_of_their_own(engine: Publishing, *, num_cached: int) -> None:
    """``engine`` is not yet started; ``num_cached``: tokens of the second prompt in full blocks."""
    try:
        facts = await engine.start()
        assert facts.dp_size == 2
        heard_of = {0: anyio.Event(), 1: anyio.Event()}
        engine.subscribe_kv_events(lambda batch: heard_of[batch.dp_rank].set())
        request = generate_request(PROMPTS[1], GREEDY)
        cached = {}
        for number, rank in enumerate((0, 1, 1)):
            ranked = replace(request, dp_rank=rank, request_id=f"rank-{number}")
            usage = (await read_all(engine, ranked)).usage
            assert usage is not None
            cached[number] = usage.num_cached_tokens
        assert cached == {0: 0, 1: 0, 2: num_cached}
        with anyio.fail_after(10):
            for has_come in heard_of.values():
                await has_come.wait()
        with pytest.raises(InvalidRequest):
            await read_all(engine, replace(request, dp_rank=7, request_id="rank-7"))
    finally:
        await engine.close()
