"""The adapter and its host process, on a stand-in that is older than what the adapter would like to have."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import psutil
import pytest
from conftest import Started, fake_engine
from msgspec.structs import replace

from dynamo_sdk.errors import (
    ConfigError,
    EngineFailed,
    EngineStartError,
    InvalidRequest,
    ModelNotFound,
    TransferError,
)
from dynamo_sdk.testing import generate_request, read_all
from dynamo_sdk.testing.streams import worker_record
from dynamo_sdk.types import FinishReason, LoraSpec, Role, SamplingParams
from dynamo_sdk_sglang.handover import SglangConnector

pytestmark = pytest.mark.anyio

NEVER = 10_000
SAMPLING = SamplingParams(max_tokens=5, temperature=0.0)


async def test_tokens_go_there_and_back(started: Started):
    async with started() as engine:
        answer = await read_all(engine, generate_request([7, 8, 9], SAMPLING))
        assert answer.token_ids == [10, 11, 12, 13, 14]
        assert answer.finish_reason is FinishReason.LENGTH
        assert answer.usage is not None
        assert answer.usage.num_cached_tokens == 4
        rest = await read_all(engine, generate_request([7, 8], SAMPLING, generated=[9, 10]))
        assert rest.token_ids == [11, 12, 13]
        with_logprobs = await read_all(engine, generate_request([7], replace(SAMPLING, logprobs=1)))
        assert [entry.logprob for entry in with_logprobs.logprobs] == [-0.5] * 5


async def test_facts_are_those_of_the_running_engine(started: Started):
    engine = fake_engine(context_length=200)
    try:
        facts = await engine.start()
        assert (facts.context_length, facts.block_size, facts.num_blocks) == (200, 16, 64)
        assert facts.handover_address is None
        await engine.probe()
    finally:
        await engine.close()


async def test_leaving_aborts_that_request_and_no_other(started: Started):
    """SGLang aborts all requests whose names begin with the one that it is told, and 17 begins with 1."""
    async with started() as engine, anyio.create_task_group() as tasks:
        waiting = [generate_request([NEVER, number], SAMPLING) for number in range(20)]
        scopes = [anyio.CancelScope() for _ in waiting]
        ended: list[int] = []
        somebody_left = anyio.Event()

        async def ask(number: int) -> None:
            with scopes[number]:
                await read_all(engine, waiting[number])
            ended.append(number)
            somebody_left.set()

        for number in range(len(waiting)):
            tasks.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        scopes[1].cancel()
        await somebody_left.wait()
        answer = await read_all(engine, generate_request([7], SAMPLING))
        assert len(answer.token_ids) == 5
        assert ended == [1]
        load = engine.load()
        assert load is not None
        assert load.num_waiting == 19
        tasks.cancel_scope.cancel()


async def test_leaving_counts_while_an_adapter_is_looked_up(
    started: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """SGLang's scheduler does not know the request then, and drops what it is told of it."""
    async with started() as engine:
        await engine.load_lora(LoraSpec(name="looked-up", path=str(tmp_path)))
        request = replace(generate_request([NEVER, 7], SAMPLING), lora="looked-up")
        scope = anyio.CancelScope()

        async def ask() -> None:
            with scope:
                await read_all(engine, request)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await read_all(engine, generate_request([7], SAMPLING))  # the other one has come there by now
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            await engine.load_lora(LoraSpec(name="other", path=str(tmp_path)))
        assert "did not confirm" not in caplog.text
        load = engine.load()
        assert load is not None
        assert load.num_running + load.num_waiting == 0


async def test_leaving_counts_also_when_all_has_come(started: Started):
    async with started() as engine:
        stream = engine.generate(generate_request([7], replace(SAMPLING, max_tokens=30)))
        await anext(stream)
        later = generate_request([7], replace(SAMPLING, max_tokens=60))
        assert len((await read_all(engine, later)).token_ids) == 60
        num_chunks = 0
        with anyio.CancelScope() as scope:
            scope.cancel()
            async for _ in stream:
                num_chunks += 1
        assert scope.cancelled_caught
        assert num_chunks == 0
        await stream.aclose()
        load = engine.load()
        assert load is not None
        assert load.num_running == 0


async def test_what_sglang_raises_is_a_refusal(started: Started):
    async with started() as engine:
        with pytest.raises(InvalidRequest, match="must not be negative"):
            await read_all(engine, generate_request([7], replace(SAMPLING, temperature=-1.0)))
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await read_all(engine, generate_request([20_000], SAMPLING))
    async with started(skip_tokenizer_init=True) as engine:
        with pytest.raises(InvalidRequest, match="min_tokens"):
            await read_all(engine, generate_request([7], replace(SAMPLING, min_tokens=2)))


async def test_a_version_that_lacks_what_counts_refuses_it(started: Started):
    """A salt that is dropped on the way would let one tenant find another's prompts. A rank has two names."""
    async with started() as engine:
        request = generate_request([7], SAMPLING)
        with pytest.raises(InvalidRequest, match="cache_salt"):
            await read_all(engine, replace(request, cache_salt="tenant"))
        assert len((await read_all(engine, replace(request, dp_rank=0, priority=-3))).token_ids) == 5


async def test_stop_tokens_hold_with_ignore_eos(started: Started):
    async with started() as engine:
        stopping = replace(SAMPLING, ignore_eos=True, stop_token_ids=(12,))
        answer = await read_all(engine, generate_request([9], stopping))
        assert answer.token_ids == [10, 11, 12]
        assert answer.finish_reason is FinishReason.STOP
        later = replace(stopping, min_tokens=4)
        assert (await read_all(engine, generate_request([9], later))).token_ids == [10, 11, 12, 13, 14]


async def test_adapters(started: Started, tmp_path: Path):
    async with started() as engine:
        loud = LoraSpec(name="loud", path=str(tmp_path))
        request = replace(generate_request([7], SAMPLING), lora="loud")
        with pytest.raises(ModelNotFound):
            await read_all(engine, request)
        await engine.load_lora(loud)
        assert engine.loras() == (loud,)
        assert (await read_all(engine, request)).token_ids == [8, 9, 10, 11, 12]
        with pytest.raises(InvalidRequest, match="no such folder"):
            await engine.load_lora(LoraSpec(name="quiet", path=str(tmp_path / "nowhere")))
        await engine.unload_lora("loud")
        with pytest.raises(ModelNotFound):
            await engine.unload_lora("loud")


async def test_prefill_says_where_legs_meet_and_hands_over():
    prefill = fake_engine(Role.PREFILL)
    try:
        facts = await prefill.start()
        assert facts.handover_address is not None
        record = worker_record("p", Role.PREFILL, handover_address=facts.handover_address)
        leg = generate_request([7], SAMPLING, role=Role.PREFILL)
        ticket = SglangConnector().prefill_ticket(leg, record, None)
        answer = await read_all(prefill, replace(leg, kv_transfer=ticket))
        assert answer.finish_reason is FinishReason.HANDOVER
        one = generate_request([7], replace(SAMPLING, max_tokens=1))
        assert (await read_all(prefill, one)).token_ids == [8]
    finally:
        await prefill.close()


async def test_decode_runs_legs_only_and_does_not_wait_for_ever(started: Started):
    async with started(Role.DECODE, handover_timeout_s=0.2) as decode:
        await decode.probe()
        leg = generate_request([NEVER], SAMPLING, role=Role.DECODE)
        with pytest.raises(EngineFailed, match="legs of hand-overs only"):
            await read_all(decode, leg)
        ticket = SglangConnector().prefill_ticket(leg, worker_record("p", Role.PREFILL), None)
        with pytest.raises(TransferError, match=r"within 0\.2 s"):
            await read_all(decode, replace(leg, kv_transfer=ticket))


async def test_the_end_of_the_host_ends_what_runs(started: Started):
    async with started() as engine:
        stream = engine.generate(generate_request([NEVER], SAMPLING))
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(EngineFailed, match="has ended"):
                    await anext(stream)

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            for process in psutil.Process().children(recursive=True):
                if "dynamo_sdk_sglang.host" in process.cmdline() and "guardian.py" not in str(
                    process.cmdline()
                ):
                    process.send_signal(signal.SIGQUIT)  # as SGLang's children do when they fail
        with pytest.raises(EngineFailed):
            await engine.wait_failed()
        with pytest.raises(EngineFailed):
            await read_all(engine, generate_request([7], SAMPLING))
        with pytest.raises(AssertionError):
            engine.check_integrity()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("crash", "RuntimeError: no kernel for this device"),
        ("broken", "ValueError: no weights in the folder"),
    ],
)
async def test_a_failed_start_says_why(path: str, said: str):
    engine = fake_engine(path=path)
    with pytest.raises(EngineStartError, match=said):
        await engine.start()
    await engine.close()
    await engine.close()


async def test_an_argument_that_the_version_lacks_is_an_error():
    engine = fake_engine(page_sise=32)
    with pytest.raises(ConfigError, match="did you mean 'page_size'"):
        await engine.start()
    await engine.close()


async def test_nothing_is_left_after_a_close(started: Started):
    before = set(psutil.Process().children(recursive=True)), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        async with started() as engine:
            await read_all(engine, generate_request([7], SAMPLING))
    assert set(psutil.Process().children(recursive=True)) <= before[0]
    assert len(os.listdir("/proc/self/fd")) <= before[1] + 2
