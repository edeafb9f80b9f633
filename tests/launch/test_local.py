"""The local launcher on real processes, with services that need no engine."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import httpx
import msgspec
import pytest

from dynamo_sdk.errors import ConfigError, LaunchError
from dynamo_sdk.interfaces import LaunchOptions
from dynamo_sdk.launch import local as local_module
from dynamo_sdk.launch.local import LocalLauncher
from dynamo_sdk.launch.restarts import RestartPolicy
from dynamo_sdk.runtime.discovery import EmbeddedDiscovery
from dynamo_sdk.runtime.registry import RegistryServer
from dynamo_sdk.types.plan import DeploymentPlan, EdgePlan, Json, ReplicaPlan, ServicePlan

from .deaths import assert_die, is_alive

pytestmark = pytest.mark.anyio

GRAPH = Path(__file__).parent / "programs" / "counting.py"


def plan_of(*, num_counters: int = 2, has_web: bool = True, **args: Json) -> DeploymentPlan:
    counter = ServicePlan(
        name="Counter",
        factory="counting:Counter",
        replicas=tuple(ReplicaPlan(index=index, host="here") for index in range(num_counters)),
        args=args,
    )
    web = ServicePlan(
        name="Web",
        factory="counting:Web",
        edges=(EdgePlan(attribute="counter", service="Counter"),),
        replicas=(ReplicaPlan(index=0, host="here"),),
        is_frontend=True,
    )
    return DeploymentPlan(target=str(GRAPH), services=(counter, web) if has_web else (counter,), models=())


@asynccontextmanager
async def launched(plan: DeploymentPlan, **options: object) -> AsyncIterator[LocalLauncher]:
    with anyio.fail_after(60):
        async with LocalLauncher(plan, LaunchOptions(port=0, drain_timeout_s=10, **options)) as launcher:
            yield launcher


async def ask(url: str | None) -> int:
    assert url is not None
    async with httpx.AsyncClient() as client:
        return int((await client.get(url, timeout=20)).text)


def pids_of(launcher: LocalLauncher) -> dict[str, int]:
    return {f"{r.service}.{r.replica}": r.pid or 0 for r in launcher._fleet.workers.values()}


async def test_a_graph_starts_answers_drains_and_is_gone() -> None:
    async with launched(plan_of(daemon=True)) as launcher:
        url = await launcher.wait_ready()
        pids = pids_of(launcher)
        assert pids.keys() == {"Counter.0", "Counter.1", "Web.0"}
        assert await ask(url) in (pids["Counter.0"], pids["Counter.1"])
        folder = launcher._folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        await launcher.drain()
        assert not any(is_alive(pid) for pid in pids.values())
    assert not folder.exists()


async def test_leaving_without_a_drain_kills_everything() -> None:
    async with launched(plan_of()) as launcher:
        await launcher.wait_ready()
        pids = pids_of(launcher)
    assert not any(is_alive(pid) for pid in pids.values())


async def test_an_error_in_the_body_leaves_nothing_behind() -> None:
    pids: dict[str, int] = {}
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with launched(plan_of()) as launcher:
            await launcher.wait_ready()
            pids = pids_of(launcher)
            raise ZeroDivisionError
    assert len(pids) == 3
    assert not any(is_alive(pid) for pid in pids.values())


async def test_killed_replicas_are_other_workers_afterwards_and_the_port_survives() -> None:
    async with launched(plan_of(num_counters=1)) as launcher:
        url = await launcher.wait_ready()
        before = launcher._fleet.workers.copy()
        for name in ("Counter.0", "Web.0"):
            pid = pids_of(launcher)[name]
            os.kill(pid, signal.SIGKILL)
            assert_die([pid])
            await launcher._fleet.wait_until(
                lambda fleet, pid=pid: pid not in {r.pid for r in fleet.values()}
            )
            assert await launcher.wait_ready() == url
            assert await ask(url) == pids_of(launcher)["Counter.0"]
        assert not before.keys() & launcher._fleet.workers.keys()


async def test_a_killed_guardian_costs_one_restart_too() -> None:
    async with launched(plan_of(num_counters=1, has_web=False)) as launcher:
        await launcher.wait_ready()
        (slot,) = launcher._slots
        process = slot._process
        assert process is not None
        pid = pids_of(launcher)["Counter.0"]
        os.kill(process.guardian_pid, signal.SIGKILL)
        await launcher._fleet.wait_until(lambda fleet: pid not in {r.pid for r in fleet.values()})
        await launcher.wait_ready()
        assert not is_alive(pid)


async def test_scaling_up_and_down() -> None:
    async with launched(plan_of(num_counters=1)) as launcher:
        url = await launcher.wait_ready()
        await launcher.scale_to("Counter", 3)
        await launcher.wait_ready()
        pids = pids_of(launcher)
        assert pids.keys() == {"Counter.0", "Counter.1", "Counter.2", "Web.0"}
        await launcher.scale_to("Counter", 1)
        assert not is_alive(pids["Counter.1"])
        assert not is_alive(pids["Counter.2"])
        assert await ask(url) == pids["Counter.0"]
        with pytest.raises(LaunchError, match="no service 'Nope'"):
            await launcher.scale_to("Nope", 1)


async def test_a_service_that_cannot_start_is_a_launch_error_with_its_last_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(LaunchError) as caught:
        async with launched(plan_of(num_counters=1, fails=True)) as launcher:
            await launcher.wait_ready()
    assert str(caught.value).startswith("Counter.0 ended with code 1 before it was ready")
    assert "the model has no weights" in str(caught.value)
    assert "Counter.0 | counting" in capfd.readouterr().err


async def test_the_cause_is_named_where_a_long_log_follows_it() -> None:
    cause = "(Worker pid=7) ERROR [executor.py:953] OSError: no weights in the file"
    log = "\n".join([cause, *(f"  File {number}" for number in range(30)), ""])
    with pytest.raises(LaunchError) as caught:
        async with launched(plan_of(num_counters=1, fails=True, says=log)) as launcher:
            await launcher.wait_ready()
    *_, last, title, before = str(caught.value).split("\n")
    assert "the model has no weights" in str(caught.value)
    assert (last, title, before) == (
        "",
        "Before that it raised, the first one first:",
        "  OSError: no weights in the file",
    )


async def test_what_the_user_wrote_wrong_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"services.Counter.args do not fit"):
        async with launched(plan_of(num_counters=1, nonsense=True)) as launcher:
            await launcher.wait_ready()


async def test_a_slot_that_fails_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RestartPolicy(first_delay_s=0.01, max_failures=3)
    monkeypatch.setattr(LocalLauncher, "restart_policy", policy)
    with pytest.raises(LaunchError, match="failure 3 in a row"):
        async with launched(plan_of(num_counters=1, has_web=False, exits=9)) as launcher:
            await launcher.wait_failed()


async def test_the_graph_goes_on_without_one_replica_and_ends_without_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LocalLauncher, "restart_policy", RestartPolicy(max_failures=1))
    async with launched(plan_of(num_counters=2)) as launcher:
        url = await launcher.wait_ready()
        pids = pids_of(launcher)
        async with anyio.create_task_group() as tasks:
            failures: list[LaunchError] = []

            async def watch() -> None:
                try:
                    await launcher.wait_failed()
                except LaunchError as error:
                    failures.append(error)

            tasks.start_soon(watch)
            os.kill(pids["Counter.1"], signal.SIGKILL)
            await launcher._slots[1].wait_ended()
            assert await ask(url) == pids["Counter.0"]
            assert failures == []
            os.kill(pids["Counter.0"], signal.SIGKILL)
        assert "Counter.0 was killed by SIGKILL, failure 1 in a row" in str(failures[0])


async def test_a_graph_that_is_not_ready_in_time_names_who_is_late() -> None:
    plan = plan_of(num_counters=0)
    with pytest.raises(LaunchError, match=r"not ready after 2 s: Web\.0"):
        async with launched(plan, ready_timeout_s=2.0) as launcher:
            await launcher.wait_ready()


async def test_without_a_frontend_there_is_no_url_until_there_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = plan_of(num_counters=1)
    counter, web = plan.services
    plan = msgspec.structs.replace(plan, services=(counter, msgspec.structs.replace(web, replicas=())))
    async with launched(plan) as launcher:
        assert await launcher.wait_ready() is None
        assert "nobody answers HTTP here: services.Web.replicas is 0" in capsys.readouterr().err
        await launcher.scale_to("Web", 1)
        assert await ask(await launcher.wait_ready()) in pids_of(launcher).values()


async def test_a_worker_joins_a_running_graph() -> None:
    plan = plan_of(num_counters=1)
    async with launched(plan) as launcher:
        url = await launcher.wait_ready()
        local = pids_of(launcher)["Counter.0"]
        async with launched(plan, only="Counter", join=launcher.join_address) as joined:
            assert await joined.wait_ready() is None
            assert {await ask(url) for _ in range(4)} == {local, *pids_of(joined).values()} - {
                pids_of(joined)["Web.0"]
            }
            await joined.drain()
        assert {await ask(url) for _ in range(4)} == {local}


async def test_who_joined_a_graph_ends_when_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "GRAPH_LOST_S", 0.3)
    async with AsyncExitStack() as stack:
        graph = await stack.enter_async_context(RegistryServer("tcp:127.0.0.1:0"))
        plan = plan_of(num_counters=1)
        async with launched(plan, only="Counter", join=graph.address) as joined:
            await joined.wait_ready()
            pids = pids_of(joined).values()
            await stack.aclose()
            with pytest.raises(LaunchError, match="it has ended, and so does what joined it"):
                await joined.wait_failed()
    assert pids
    assert not any(is_alive(pid) for pid in pids)


async def test_a_graph_with_a_secret_is_closed_to_those_without() -> None:
    async with launched(plan_of(), secret="open sesame") as launcher:
        url = await launcher.wait_ready()
        assert await ask(url) in pids_of(launcher).values()
        assert launcher.join_address is not None
        stranger = EmbeddedDiscovery(launcher.join_address, secret="guess")
        with pytest.raises(Exception, match="secret"):
            await anext(stranger.watch())
        await stranger.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "Nope", "join": "tcp:127.0.0.1:1"}, "no such service"),
        ({"only": "Counter"}, "needs a graph to join"),
        ({"only": "Counter", "join": "tcp:10.0.0.1:1"}, "shared secret"),
        ({"only": "Counter", "join": "nonsense"}, "no address"),
    ],
)
async def test_options_that_cannot_work(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalLauncher(plan_of(), LaunchOptions(**options))


async def test_a_port_that_is_taken_says_what_to_do() -> None:
    async with launched(plan_of()) as launcher:
        url = await launcher.wait_ready()
        port = int(str(url).rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            async with LocalLauncher(plan_of(), LaunchOptions(port=port)):
                pass
