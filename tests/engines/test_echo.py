"""What is special about the echo engine; what every engine must do is checked by the kit in tests/testing."""

from __future__ import annotations

import math
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dynamo_sdk.engines import stateless
from dynamo_sdk.engines.echo import EchoConfig, EchoEngine
from dynamo_sdk.errors import (
    EngineFailed,
    EngineStartError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    TicketUnknown,
)
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import Answer, generate_request, read_all
from dynamo_sdk.types import (
    EmbedRequest,
    FinishReason,
    GenerateRequest,
    KVTransferParams,
    LoraSpec,
    ModelSpec,
    PackedTokens,
    Role,
    SamplingParams,
    pack_tokens,
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def started(config: EchoConfig | None = None) -> EchoEngine:
    engine = EchoEngine(EngineSetup(model=ModelSpec(name="model", path="."), role=Role.AGGREGATED), config)
    await engine.start()
    return engine


def ask(prompt: list[int], max_tokens: int, **changes: object) -> GenerateRequest:
    return generate_request(prompt, SamplingParams(max_tokens=max_tokens, **changes))  # type: ignore[arg-type]


@given(
    prompt=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    max_tokens=st.integers(1, 50),
    min_tokens=st.integers(0, 30),
    ignore_eos=st.booleans(),
    num_given=st.integers(0, 49),
)
def test_against_a_naive_echo(
    prompt: list[int], max_tokens: int, min_tokens: int, ignore_eos: bool, num_given: int
) -> None:
    endless = prompt * 80
    ends = [
        end for end in range(len(prompt), len(endless), len(prompt)) if not ignore_eos and end >= min_tokens
    ]
    stop_at = next((end for end in ends if end > num_given), math.inf)
    num_given = min(num_given, max_tokens - 1)
    stop_at = next((end for end in ends if end > num_given), math.inf)

    async def run() -> Answer:
        request = generate_request(
            prompt,
            SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens, ignore_eos=ignore_eos),
            generated=endless[:num_given],
        )
        return await read_all(await started(), request)

    answer = anyio.run(run)
    end = int(min(stop_at, max_tokens))
    assert answer.token_ids == endless[num_given:end]
    assert answer.finish_reason is (FinishReason.STOP if stop_at <= max_tokens else FinishReason.LENGTH)
    assert answer.usage is not None
    assert answer.usage.num_output_tokens == end - num_given


@pytest.mark.anyio
async def test_two_legs_give_the_prompt() -> None:
    engine = await started()
    first = await read_all(engine, generate_request([7, 8, 9], role=Role.PREFILL))
    assert (first.token_ids, first.finish_reason) == ([7], FinishReason.HANDOVER)
    assert first.kv_transfer == stateless.TICKET
    rest = await read_all(engine, generate_request([7, 8, 9], generated=[7], role=Role.DECODE))
    assert (rest.token_ids, rest.finish_reason) == ([8, 9], FinishReason.STOP)


@pytest.mark.anyio
async def test_full_means_overloaded_and_a_place_comes_back() -> None:
    engine = await started(EchoConfig(max_num_requests=1))
    stream = engine.generate(ask([1, 2, 3], 3))
    await anext(stream)
    assert engine.load().num_running == 1
    with pytest.raises(Overloaded, match="runs 1 requests at once and is full"):
        await read_all(engine, ask([1], 1))
    await stream.aclose()
    assert engine.load().num_running == 0
    assert (await read_all(engine, ask([1], 1))).token_ids == [1]


@pytest.mark.anyio
async def test_close_wakes_a_stream_that_pauses() -> None:
    engine = await started(EchoConfig(delay_ms=3_600_000))
    raised: list[Exception] = []

    async def consume() -> None:
        try:
            await read_all(engine, ask([1], 1))
        except EngineFailed as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        await engine.close()
    assert len(raised) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask([], 1), "prompt"),
        (ask([1] * 16, 1), "prompt"),
        (ask([1], 0), "max_tokens"),
        (generate_request([1, 2], SamplingParams(max_tokens=1), generated=[1]), "max_tokens"),
        (
            GenerateRequest(
                request_id="torn",
                model="model",
                prompt=PackedTokens(b"abcde"),
                sampling=SamplingParams(max_tokens=1),
            ),
            "prompt",
        ),
    ],
)
async def test_bad_input_names_the_field(request_: GenerateRequest, param: str) -> None:
    engine = await started(EchoConfig(context_length=16))
    with pytest.raises(InvalidRequest) as caught:
        await read_all(engine, request_)
    assert caught.value.param == param
    assert engine.load().num_running == 0


@pytest.mark.anyio
async def test_an_adapter_turns_the_prompt_round(tmp_path: Path) -> None:
    engine = await started()
    request = replace(ask([1, 2, 3], 3), lora="turned")
    with pytest.raises(ModelNotFound, match="no adapter 'turned'"):
        await read_all(engine, request)
    with pytest.raises(InvalidRequest, match="no folder"):
        await engine.load_lora(LoraSpec(name="turned", path=str(tmp_path / "nowhere")))
    await engine.load_lora(LoraSpec(name="turned", path=str(tmp_path)))
    assert (await read_all(engine, request)).token_ids == [3, 2, 1]
    assert engine.load().num_running == 0


@pytest.mark.anyio
async def test_a_ticket_of_another_connector_is_unknown() -> None:
    request = GenerateRequest(
        request_id="r",
        model="model",
        prompt=pack_tokens([1]),
        sampling=SamplingParams(max_tokens=1),
        role=Role.DECODE,
        kv_transfer=KVTransferParams(connector="direct", payload=b"?"),
    )
    with pytest.raises(TicketUnknown, match="'direct'"):
        await read_all(await started(), request)


@pytest.mark.anyio
async def test_starts_once() -> None:
    engine = await started()
    with pytest.raises(EngineStartError):
        await engine.start()


@pytest.mark.anyio
async def test_texts_with_common_tokens_are_near() -> None:
    engine = await started()

    async def embed(*prompt: int) -> list[float]:
        request = EmbedRequest(request_id="e", model="model", prompt=pack_tokens(prompt))
        return (await engine.embed(request)).vector

    def cosine(one: list[float], two: list[float]) -> float:
        return sum(a * b for a, b in zip(one, two, strict=True))

    text = await embed(1, 2, 3, 4)
    assert cosine(text, await embed(4, 3, 2, 1)) == pytest.approx(1.0)
    assert cosine(text, await embed(1, 2, 3, 40)) > cosine(text, await embed(50, 60, 70, 80))
