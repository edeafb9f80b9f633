"""A whole graph on the test's own event loop."""

from __future__ import annotations

import asyncio
import os

import anyio
import httpx
import msgspec
import pytest

from dynamo_sdk import Graph, depends, endpoint, service
from dynamo_sdk.errors import ConfigError, GraphError, LaunchError
from dynamo_sdk.interfaces import LaunchOptions
from dynamo_sdk.launch.inprocess import InProcessLauncher
from dynamo_sdk.types.plan import DeploymentPlan, EdgePlan, ReplicaPlan, ServicePlan

from .programs import counting

pytestmark = pytest.mark.anyio


@service
class Doubler:
    async def on_start(self) -> None:
        self.is_open = True

    async def on_stop(self) -> None:
        self.is_open = False

    @endpoint
    async def double(self, number: int) -> int:
        assert self.is_open
        return 2 * number


@service
class Adder:
    doubler = depends(Doubler)

    @endpoint
    async def add_doubled(self, left: int, right: int) -> int:
        return await self.doubler.double(left) + await self.doubler.double(right)


@service
class Breaks:
    async def on_start(self) -> None:
        raise RuntimeError("no weights")


async def test_a_graph_answers_typed_calls_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with InProcessLauncher.app(Graph(Adder)) as app:
        assert app.url is None
        assert await app.client(Adder).add_doubled(1, 20) == 42
        assert await app.client(Doubler).double(4) == 8
        with pytest.raises(GraphError, match="Breaks is no service of this graph"):
            app.client(Breaks)
    assert asyncio.all_tasks() == before


async def test_a_frontend_listens_on_a_real_socket() -> None:
    plan = DeploymentPlan(
        target=counting.__file__,
        services=(
            ServicePlan(name="Counter", factory="", replicas=(ReplicaPlan(index=0, host="here"),)),
            ServicePlan(
                name="Web",
                factory="",
                edges=(EdgePlan(attribute="counter", service="Counter"),),
                replicas=(ReplicaPlan(index=0, host="here"),),
                is_frontend=True,
            ),
        ),
        models=(),
    )
    async with InProcessLauncher(plan, LaunchOptions(port=0)) as launcher:
        url = await launcher.wait_ready()
        assert url == launcher.url
        async with httpx.AsyncClient() as client:
            assert int((await client.get(str(url))).text) == os.getpid()
        await launcher.drain()


async def test_scaling_changes_who_answers() -> None:
    async with InProcessLauncher.app(Graph(Doubler)) as app:
        await app.scale_to("Doubler", 3)
        await app.wait_ready()
        assert len(app._fleet.workers) == 3
        await app.scale_to("Doubler", 1)
        await app._fleet.wait_until(lambda fleet: [r.replica for r in fleet.values()] == [0])
        assert await app.client(Doubler).double(1) == 2


async def test_a_service_that_cannot_start_fails_the_graph_with_its_name() -> None:
    with pytest.raises(LaunchError, match=r"Breaks\.0 failed: RuntimeError: no weights"):
        async with InProcessLauncher.app(Graph(Breaks)):
            pass


async def test_the_callers_error_passes_through_and_nothing_is_left() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        async with InProcessLauncher.app(Graph(Adder)):
            raise ZeroDivisionError
    assert asyncio.all_tasks() == before


async def test_cancelling_the_caller_ends_the_graph() -> None:
    before = asyncio.all_tasks()
    with anyio.move_on_after(10) as scope:
        async with InProcessLauncher.app(Graph(Adder)):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert asyncio.all_tasks() == before


async def test_overrides_reach_the_plan() -> None:
    async with InProcessLauncher.app(Graph(Adder), overrides=["services.Doubler.replicas=2"]) as app:
        assert len(app.plan.service("Doubler").replicas) == 2
        assert len(app._fleet.workers) == 3


async def test_an_endless_wait_ends_at_its_limit() -> None:
    plan = DeploymentPlan(
        target=counting.__file__,
        services=(
            ServicePlan(
                name="Web",
                factory="",
                edges=(EdgePlan(attribute="counter", service="Counter"),),
                replicas=(ReplicaPlan(index=0, host="here"),),
                is_frontend=True,
            ),
        ),
        models=(),
    )
    with pytest.raises(LaunchError, match=r"not ready after 0 s: Web\.0"):
        async with InProcessLauncher(plan, LaunchOptions(port=0, ready_timeout_s=0.3)) as launcher:
            await launcher.wait_ready()


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"join": "tcp:127.0.0.1:1", "only": "Web"}),
        ({"python": "./other/bin/python"}, {}),
        (
            {
                "replicas": (
                    ReplicaPlan(index=0, host="h", gpu_ids=("0",)),
                    ReplicaPlan(index=1, host="h", gpu_ids=("1",)),
                )
            },
            {},
        ),
    ],
)
def test_what_needs_processes_is_refused(changes: dict[str, object], options: dict[str, str]) -> None:
    web = msgspec.structs.replace(ServicePlan(name="Web", factory=""), **changes)
    plan = DeploymentPlan(target=counting.__file__, services=(web,), models=())
    with pytest.raises(ConfigError, match="use --launcher local"):
        InProcessLauncher(plan, LaunchOptions(**options))
