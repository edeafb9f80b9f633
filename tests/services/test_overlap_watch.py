"""Whoever routes by what caches hold is told when that is not known, or not true."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.flow import FlowConfig
from dynamo_sdk.interfaces import Candidate, Freed, Routed, RoutingContext, RoutingRequest
from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.launch.inprocess import InProcessLauncher
from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.routing.policies import LeastLoadedRouter, RandomRouter
from dynamo_sdk.routing.shadow import ShadowRouter
from dynamo_sdk.runtime.clock import ManualClock, settle
from dynamo_sdk.services import Frontend, Worker, overlap_watch
from dynamo_sdk.services.dispatch import ModelRoute
from dynamo_sdk.services.kv_feed import KVFeed, KVFeedStatistics
from dynamo_sdk.services.overlap_watch import GRACE_S, MIN_REQUESTS, OverlapWatch
from dynamo_sdk.services.shadow_meter import ShadowMeter
from dynamo_sdk.types import Role, WorkerId

from .fleet import Fleet

pytestmark = pytest.mark.anyio
WORKER, POOL = WorkerId("w"), ("m", Role.AGGREGATED)


def serve(book: CandidateBook, num: int, *, predicted: int, actual: int) -> None:
    for number in range(num):
        name = f"{predicted}-{actual}-{number}"
        book.observe(
            Routed(
                request_id=name,
                worker_id=WORKER,
                role=Role.AGGREGATED,
                num_tokens=1000,
                num_cached_tokens=predicted,
            ),
            0.0,
        )
        book.observe(Freed(request_id=name, worker_id=WORKER, num_cached_tokens=actual), 1.0)


async def test_predictions_that_disagree_are_said_once_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    book, metrics, clock = CandidateBook(), FrontendMetrics(), ManualClock()
    book.join(WORKER, pool=POOL)
    watch = OverlapWatch(KVFeed(PrefixIndex(), clock), book, clock, metrics)
    serve(book, MIN_REQUESTS, predicted=600, actual=590)
    watch.check()
    assert not caplog.messages
    for _ in range(2):
        serve(book, MIN_REQUESTS, predicted=600, actual=100)
        watch.check()
    assert [message for message in caplog.messages if "30000 prompt tokens should" in message] == (
        caplog.messages
    )
    assert len(caplog.messages) == 1
    assert "predicted 90000 and found 39500 (they disagree)" in watch.describe("m")
    assert 'dynamo_router_predicted_cached_tokens_total{model="m",worker_id=""} 90000.0' in (
        metrics.render().decode()
    )
    serve(book, MIN_REQUESTS, predicted=600, actual=600)
    watch.check()
    assert "disagree" not in watch.describe("m")


async def test_a_worker_without_events_is_named_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    async with Fleet() as fleet:
        feed = KVFeed(PrefixIndex(), fleet.clock)
        watch = OverlapWatch(feed, fleet.pools.book, fleet.clock, None)
        await fleet.add("w", Role.AGGREGATED)  # has no endpoint for them
        [record] = fleet.pools.all_workers()
        feed.follow(WORKER, fleet.pools.client_of(record), [0])
        watch.start()
        await settle()
        assert "KV events from 0 of 1 workers" in watch.describe("m")
        said = [message for message in caplog.messages if "its cache is guessed" in message]
        assert not said
        for _ in range(int(GRACE_S) + 3):
            await fleet.clock.advance(1.0)
        said = [message for message in caplog.messages if "its cache is guessed" in message]
        assert [message.split(":")[0] for message in said] == [f"no KV events from w for {GRACE_S:.0f} s"]
        await watch.close()
        await feed.close()
        assert not [task for task in asyncio.all_tasks() if "_watch" in str(task.get_coro())]


@pytest.mark.parametrize("needs_events", [True, False])
async def test_an_engine_that_publishes_none_is_named_only_where_choices_depend_on_it(
    needs_events: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)
        [record] = fleet.pools.all_workers()
        feed = MuteFeed(PrefixIndex(), fleet.clock)
        feed.follow(WORKER, fleet.pools.client_of(record), [0])
        watch = OverlapWatch(
            feed, fleet.pools.book, fleet.clock, None, needs_events=lambda worker_id: needs_events
        )
        watch.check()
        await fleet.clock.advance(GRACE_S)
        for _ in range(2):
            watch.check()
        assert sum("its cache is guessed" in message for message in caplog.messages) == needs_events
        await feed.close()


@service
class Whole(Worker): ...


@service
class Api(Frontend):
    whole = depends(Whole)


@pytest.mark.parametrize("num_workers", [1, 2])
async def test_a_router_without_a_choice_needs_no_events(
    num_workers: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(overlap_watch, "GRACE_S", 0.0)
    monkeypatch.setattr(overlap_watch, "CHECK_S", 0.0)
    checks: list[str] = []
    check = OverlapWatch.check

    def spied(self: OverlapWatch) -> None:
        check(self)
        if "no KV events from" in caplog.text:
            checks.append(caplog.text)

    monkeypatch.setattr(OverlapWatch, "check", spied)
    overrides = ["models.demo.path=demo", "models.demo.router=kv"]
    overrides += ["services.Whole.engine=echo", f"services.Whole.replicas={num_workers}"]
    async with InProcessLauncher.app(Graph(Api), overrides=overrides):
        with anyio.fail_after(30):
            while len(checks) < 5:
                await checkpoint()
    assert ("its cache is guessed" in caplog.text) == (num_workers > 1)


class MuteFeed(KVFeed):
    """All that it follows has said that it publishes no events."""

    def statistics(self) -> dict[WorkerId, KVFeedStatistics]:
        found = super().statistics()
        return {worker_id: replace(feed, publishes=False) for worker_id, feed in found.items()}


async def test_what_had_to_be_put_right_of_a_stream_of_events_is_counted() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)  # has no endpoint for them: each call breaks off
        [record] = fleet.pools.all_workers()
        metrics = FrontendMetrics(worker_id="f")
        feed = FaultyFeed(PrefixIndex(), fleet.clock)
        feed.follow(WORKER, fleet.pools.client_of(record), [0])
        watch = OverlapWatch(feed, fleet.pools.book, fleet.clock, metrics)
        for feed.num_faults in (2, 2, 5, 1, 3):
            watch.check()
        series = 'dynamo_router_kv_event_faults_total{{fault="{}",worker_id="f"}} {}'
        text = metrics.render().decode()
        for fault in ("break", "gap", "restart", "misfit"):
            assert series.format(fault, 7.0) in text
        feed.unfollow(WORKER)
        watch.check()
        await feed.close()


class FaultyFeed(KVFeed):
    """Has seen so many faults of each kind."""

    num_faults = 0

    def statistics(self) -> dict[WorkerId, KVFeedStatistics]:
        num = self.num_faults
        return {
            worker_id: replace(feed, num_breaks=num, num_gaps=num, num_restarts=num, num_misfits=num)
            for worker_id, feed in super().statistics().items()
        }


async def test_events_that_mislead_are_no_events() -> None:
    async with Fleet() as fleet:
        await fleet.add("w", Role.AGGREGATED)
        [record] = fleet.pools.all_workers()
        heard: list[bool] = []
        book = fleet.pools.book
        book.hears_events = lambda worker_id, has_events: heard.append(has_events)  # type: ignore[method-assign]
        feed = LiveFeed(PrefixIndex(), fleet.clock)
        feed.follow(WORKER, fleet.pools.client_of(record), [0])
        for is_misled in (False, True):
            OverlapWatch(
                feed, book, fleet.clock, None, is_misled=lambda worker_id, answer=is_misled: answer
            ).check()
        assert heard == [True, False]
        await feed.close()


class LiveFeed(KVFeed):
    """All that it follows is live."""

    def statistics(self) -> dict[WorkerId, KVFeedStatistics]:
        found = super().statistics()
        return {worker_id: replace(feed, is_live=True) for worker_id, feed in found.items()}


async def test_what_shadows_would_have_done_is_counted() -> None:
    book, metrics, clock = CandidateBook(), FrontendMetrics(), ManualClock()
    router = ShadowRouter(LeastLoadedRouter(), {"random": RandomRouter()})
    route = ModelRoute(
        name="m", config=FlowConfig(), routers={Role.AGGREGATED: router}, on_migration=lambda _: None
    )
    watch = OverlapWatch(KVFeed(PrefixIndex(), clock), book, clock, metrics, ShadowMeter([route], metrics))
    asked = RoutingRequest(request_id="r", model="m", role=Role.AGGREGATED, num_tokens=10)
    fleet = [Candidate(worker_id=WorkerId("a")), Candidate(worker_id=WorkerId("b"), num_active_requests=3)]
    for _ in range(2):
        for _ in range(20):
            router.select(asked, fleet, RoutingContext(now_s=0.0, rng=Random(1)))
        watch.check()
    shown = metrics.render().decode()
    labels = '{model="m",shadow="random",worker_id=""}'
    assert f"dynamo_router_shadow_decisions_total{labels} 40.0" in shown
    assert (
        f"dynamo_router_shadow_different_total{labels} {router.statistics['random'].num_different}.0" in shown
    )
