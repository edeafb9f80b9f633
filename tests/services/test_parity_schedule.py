"""Who is checked when: each model of each worker, and again where nobody answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from dynamo_sdk.flow import FlowConfig
from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.kv.parity import ParityReport, ProbeFinding, Verdict
from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.preprocess import ModelPipeline
from dynamo_sdk.routing.kv import KvRouter
from dynamo_sdk.runtime.clock import settle
from dynamo_sdk.services.dispatch import Dispatcher, DispatchLimits, ModelRoute
from dynamo_sdk.services.kv_feed import KVFeed
from dynamo_sdk.services.parity_doctor import MAX_RETRY_S, RETRY_S, ParityDoctor, PipelineOf
from dynamo_sdk.types import ModelRecord, Role, WorkerRecord

from .fleet import Fleet

pytestmark = pytest.mark.anyio


class Asking(ParityDoctor):
    """Writes down whom it would probe."""

    is_busy = False
    asked: list[tuple[str, str]]

    async def _check(self, route: ModelRoute, worker: WorkerRecord, pipeline_of: PipelineOf) -> ParityReport:
        self.asked.append((route.name, worker.worker_id))
        self._num_unanswered += self.is_busy
        verdict = Verdict.UNKNOWN if self.is_busy else Verdict.OK
        return ParityReport((ProbeFinding(probe="text", verdict=verdict, text="it was busy"),))


async def no_pipeline(record: ModelRecord) -> ModelPipeline:
    raise AssertionError(f"nothing is probed, {record.name} neither")


@asynccontextmanager
async def checking(fleet: Fleet, *, is_busy: bool = False) -> AsyncIterator[Asking]:
    routes = {
        name: ModelRoute(
            name=name,
            config=FlowConfig(),
            routers={Role.AGGREGATED: KvRouter()},
            on_migration=lambda _: None,
        )
        for name in ("m", "n")
    }
    doctor = Asking(
        fleet.view,
        fleet.pools,
        KVFeed(PrefixIndex(), fleet.clock),
        Dispatcher(fleet.pools, fleet.clock, DispatchLimits()),
        routes,
        fleet.clock,
        FrontendMetrics(),
        Random(1),
    )
    doctor.asked, doctor.is_busy = [], is_busy
    doctor.start(no_pipeline)
    await settle()
    yield doctor
    await doctor.close()


async def test_each_model_of_a_worker_is_checked() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED, models=("m", "n"))
        async with checking(fleet) as doctor:
            assert doctor.asked == [("m", "w"), ("n", "w")]
            assert doctor.describe("n") == "block keys as predicted on 1 of 1 workers"
            await fleet.add("v", Role.AGGREGATED, models=("n",))
            await settle()
            assert doctor.asked[2:] == [("n", "v")]


async def test_who_did_not_answer_is_asked_later_and_later() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)
        async with checking(fleet, is_busy=True) as doctor:
            pause_s, num_asked = RETRY_S, 1
            for _ in range(7):
                await fleet.clock.advance(pause_s - 1)
                assert len(doctor.asked) == num_asked
                await fleet.clock.advance(1)
                num_asked, pause_s = num_asked + 1, min(2 * pause_s, MAX_RETRY_S)
                assert len(doctor.asked) == num_asked
            assert "unknown, probe 'text': it was busy" in doctor.describe("m")
            doctor.is_busy = False
            await fleet.clock.advance(pause_s)
            assert doctor.describe("m") == "block keys as predicted on 1 of 1 workers"
            await fleet.clock.advance(10 * MAX_RETRY_S)
            assert len(doctor.asked) == num_asked + 1, "who has answered is not asked again"


async def test_who_comes_first_and_who_has_gone_is_forgotten() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)
        async with checking(fleet, is_busy=True) as doctor:
            await fleet.add("v", Role.AGGREGATED)
            await settle()
            assert doctor.asked == [("m", "w"), ("m", "v")]
            await fleet.kill("w")
            await settle()
            await fleet.clock.advance(RETRY_S)
            assert doctor.asked[2:] == [("m", "v")]
