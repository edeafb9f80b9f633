"""What the conformance kit cannot see: how requests reach TensorRT-LLM, and how they leave it."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from conftest import BLOCK, Started
from fake_tensorrt_llm import World

from dynamo_sdk.errors import ConfigError, EngineStartError, InvalidRequest, TicketUnknown, TransferError
from dynamo_sdk.testing import generate_request, read_all
from dynamo_sdk.types import FinishReason, GenerateRequest, KVEventBatch, Role, SamplingParams, pack_tokens
from dynamo_sdk_trtllm.engine import TensorRTEngine

pytestmark = pytest.mark.anyio
PROMPT = list(range(20, 31))
SAMPLING = SamplingParams(max_tokens=8, temperature=0.0, logprobs=1)


async def prefilled(engine: TensorRTEngine) -> GenerateRequest:
    """The decode leg of a request whose prefill leg has ended."""
    request = generate_request(PROMPT, SAMPLING, role=Role.PREFILL)
    first = await read_all(engine, request)
    assert first.finish_reason is FinishReason.HANDOVER
    return msgspec.structs.replace(
        request, role=Role.DECODE, generated=pack_tokens(first.token_ids), kv_transfer=first.kv_transfer
    )


async def test_both_legs_together_are_one_answer(world: World, started: Started):
    async with started(Role.PREFILL) as prefill, started(Role.DECODE) as decode, started() as whole:
        answer = await read_all(decode, await prefilled(prefill))
        alone = await read_all(whole, generate_request(PROMPT, SAMPLING))
    assert answer.token_ids == alone.token_ids[1:]
    assert answer.logprobs == alone.logprobs[1:]
    assert answer.usage is not None
    assert answer.usage.num_output_tokens == 7
    assert answer.usage.num_cached_tokens == 0
    asked = world.requests[-2]
    assert asked.inputs == PROMPT
    assert asked.sampling_params.max_tokens == 8
    assert asked.disaggregated_params.first_gen_tokens == alone.token_ids[:1]


async def test_an_abort_waits_for_the_transfer(world: World, started: Started):
    async with started(Role.PREFILL) as prefill, started(Role.DECODE) as decode:
        request = await prefilled(prefill)
        world.may_fetch.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all, decode, request)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            async with anyio.create_task_group() as inner:
                inner.cancel_scope.shield = True
                await anyio.wait_all_tasks_blocked()
                assert world.engines[-1].running, "aborted in the middle of the transfer"
                load = decode.load()
                assert load is not None
                assert load.num_waiting == 1
                world.may_fetch.set()
        assert not world.engines[-1].running
        assert world.num_leaked == 0


async def test_closing_does_not_wait_for_a_transfer(world: World, started: Started):
    async with started(Role.PREFILL) as prefill, started(Role.DECODE) as decode:
        request = await prefilled(prefill)
        world.may_fetch.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all, decode, request)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await decode.close()
        assert not world.engines[-1].running


async def test_a_lost_peer_is_a_transfer_error(world: World, started: Started):
    async with started(Role.PREFILL) as prefill, started(Role.DECODE) as decode:
        request = await prefilled(prefill)
        world.transfers.clear()
        with pytest.raises(TransferError, match="could not fetch"):
            await read_all(decode, request)
        with pytest.raises(TicketUnknown, match="used before"):
            await read_all(decode, request)


async def test_optional_arguments_go_where_they_are_known(world: World, started: Started):
    request = msgspec.structs.replace(generate_request(PROMPT), priority=-3, cache_salt="a", dp_rank=0)
    async with started() as engine:
        await read_all(engine, request)
    asked = world.requests[0]
    assert asked.cache_salt == "a"
    assert (asked.scheduling_params.attention_dp_rank, asked.scheduling_params.attention_dp_relax) == (
        0,
        False,
    )
    assert hasattr(asked, "priority") == (world.version == "1.3")
    if world.version == "1.3":
        assert 0.5 < asked.priority < 1


async def test_what_a_request_needs_is_never_dropped(world: World, started: Started):
    class Older:
        def __init__(self, max_tokens: int = 32, top_k: int | None = None) -> None: ...

    async with started() as engine:
        engine._api.SamplingParams = Older
        sampling = SamplingParams(max_tokens=2, temperature=0.0, presence_penalty=1.0)
        with pytest.raises(InvalidRequest, match="has no presence_penalty"):
            await read_all(engine, generate_request(PROMPT, sampling))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_batch_siz": 4}, r"args.max_batch_siz: .*did you mean 'max_batch_size'"),
        ({"kv_cache_config": {"tokens_per_blok": 4}}, r"args.kv_cache_config.tokens_per_blok: "),
        ({"cache_transceiver_config": 7}, "not a table"),
    ],
)
async def test_what_the_version_does_not_know_is_the_users_mistake(
    started: Started, args: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        async with started(**args):
            pass


async def test_without_the_package_the_error_says_what_to_do(
    started: Started, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_llm.llmapi", None)
    with pytest.raises(EngineStartError, match=r"dynamo-sdk-trtllm\[engine\].*services.X.python"):
        async with started():
            pass


async def test_only_prefill_gives_up_the_overlap_scheduler(world: World, started: Started):
    for role in Role:
        async with started(role):
            args = world.engines[-1].args
            assert bool(args.disable_overlap_scheduler) == (role is Role.PREFILL)
            assert args.cache_transceiver_config.backend == "DEFAULT"
            assert args.cache_transceiver_config.kv_transfer_timeout_ms == 60_000
            assert args.kv_cache_config.event_buffer_max_size > 0


async def test_events_tell_of_full_blocks_of_the_largest_window(world: World, started: Started):
    batches: list[KVEventBatch] = []
    async with started() as engine:
        engine.subscribe_kv_events(batches.append)
        await read_all(engine, generate_request(PROMPT))
        await anyio.wait_all_tasks_blocked()
        told = [event for batch in batches for event in batch.events]
        assert [batch.sequence for batch in batches] == list(range(len(batches)))
        assert all(len(event.token_ids) == BLOCK for event in told)  # type: ignore[union-attr]
        assert len(told) == (len(PROMPT) + 7) // BLOCK
        [snapshot] = engine.kv_snapshot()
        assert len(snapshot.events) == len(told)


async def test_a_dead_engine_fails_its_probe(world: World, started: Started):
    async with started() as engine:
        engine.check_integrity()
        world.is_healthy = False
        with pytest.raises(AssertionError):
            engine.check_integrity()
