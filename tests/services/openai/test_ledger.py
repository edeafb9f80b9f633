from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.metrics import LEDGER_STAGES
from dynamo_sdk.services.openai import OpenAIApp
from dynamo_sdk.services.openai.ledger import Ledger, server_timing, settle
from dynamo_sdk.types import GenerateRequest, LegTiming

from .asking import call
from .fakes import ScriptedBackend

CHAT = "/v1/chat/completions"
seconds = st.floats(-1.0, 1e4, allow_nan=False)


def chat(**fields: object) -> dict[str, object]:
    return {"model": "demo", "messages": [{"role": "user", "content": "hi"}], **fields}


@dataclass
class TimedBackend(ScriptedBackend):
    """An engine that says that its legs took no time, but for queueing: far longer than they did."""

    def timing(self, request: GenerateRequest) -> LegTiming | None:
        return LegTiming(queue_s=2.0, prefill_s=0.5, transfer_s=0.25, decode_s=0.125)


@given(seconds, seconds, seconds, st.tuples(seconds, seconds, seconds, seconds))
def test_the_stages_sum_to_the_total(
    total_s: float, tokenize_s: float, route_s: float, legs_s: tuple[float, float, float, float]
) -> None:
    ledger = settle(total_s=total_s, tokenize_s=tokenize_s, route_s=route_s, legs=LegTiming(*legs_s))
    stages_us = ledger.stages_us()
    assert [f"{stage}_us" for stage in LEDGER_STAGES] == list(Ledger.__struct_fields__)[:-1]
    assert stages_us == tuple(getattr(ledger, f"{stage}_us") for stage in LEDGER_STAGES)
    assert sum(stages_us) == ledger.total_us
    assert min(stages_us) >= 0
    assert ledger.total_us >= round(total_s * 1e6)


def test_what_nobody_accounts_for_is_the_sdks() -> None:
    ledger = settle(total_s=1.0, tokenize_s=0.1, route_s=0.2, legs=LegTiming(prefill_s=0.3, decode_s=0.15))
    assert (ledger.sdk_us, ledger.total_us) == (250_000, 1_000_000)


def test_server_timing_is_in_milliseconds() -> None:
    assert server_timing(120, 3) == b"tokenize;dur=0.120, route;dur=0.003"


@pytest.mark.anyio
async def test_an_answer_carries_it_when_asked() -> None:
    answer = await call(TimedBackend(), CHAT, chat(dynamo={"ledger": True}))
    ledger = Ledger(**answer.json()["dynamo"]["ledger"])
    assert (ledger.queue_us, ledger.prefill_us) == (2_000_000, 500_000)
    assert (ledger.transfer_us, ledger.decode_us) == (250_000, 125_000)
    assert ledger.sdk_us == 0, "the engine claims more than the whole request took"
    shown = {part.split(";")[0] for part in answer.headers["server-timing"].split(", ")}
    assert shown == set(LEDGER_STAGES)


@pytest.mark.anyio
async def test_a_stream_carries_it_in_its_last_event() -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        answer = await call(TimedBackend(), CHAT, chat(stream=True, dynamo={"ledger": True}, **options))
        *others, last = answer.events()
        assert (last["choices"], last["dynamo"]["ledger"]["queue_us"]) == ([], 2_000_000)
        assert (last.get("usage") is not None) == bool(options)
        assert not any("dynamo" in event for event in others)
        shown = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert shown == ["tokenize", "route"], "the rest is not known when a stream begins"


@pytest.mark.anyio
async def test_completions_carry_it_too() -> None:
    answer = await call(
        TimedBackend(), "/v1/completions", {"model": "demo", "prompt": "hi", "dynamo": {"ledger": True}}
    )
    assert answer.json()["dynamo"]["ledger"]["queue_us"] == 2_000_000


@pytest.mark.anyio
async def test_unasked_it_is_a_metric_only() -> None:
    app = OpenAIApp(TimedBackend())
    answer = await call(app, CHAT, chat(n=2))
    assert "dynamo" not in answer.json()
    stage = 'dynamo_frontend_stage_duration_seconds_%s{model="demo",stage="queue",worker_id=""} '
    metrics = (await call(app, "/metrics")).body.decode()
    assert stage % "count" + "2.0" in metrics, "one per choice"
    assert stage % "sum" + "4.0" in metrics
