"""Real processes, really killed. The family has a child and a daemon that escaped by ``setsid``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest

from dynamo_sdk.errors import LaunchError
from dynamo_sdk.launch.processes import GuardedProcess, marked_processes

from .deaths import assert_die, is_alive

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a subreaper"),
]

PROGRAMS = Path(__file__).parent / "programs"
FAMILY = [sys.executable, str(PROGRAMS / "family.py")]
MEMBERS = {"replica", "child", "daemon"}


@asynccontextmanager
async def guarded(*words: str, grace_s: float = 60) -> AsyncIterator[GuardedProcess]:
    process = await GuardedProcess.start(
        [*FAMILY, *words], worker_id=f"w-{os.getpid()}", environment=os.environ, grace_s=grace_s
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()
        await process.aclose()


async def pids_of(process: GuardedProcess, names: set[str] = MEMBERS) -> dict[str, int]:
    text = b""
    async for piece in process.output():
        text += piece
        found = dict(line.split() for line in text.decode().splitlines(keepends=False) if " " in line)
        if text.endswith(b"\n") and names <= set(found):
            return {name: int(pid) for name, pid in found.items()}
    raise AssertionError(f"the family ended early: {text!r}")


@contextmanager
def launcher(scratch: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    """A launcher in a process of its own, and the pids of all below it."""
    command = [sys.executable, str(PROGRAMS / "launcher.py"), str(scratch), *FAMILY, "stubborn"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = {}
        while pids.keys() != MEMBERS | {"guardian"}:
            name, pid = process.stdout.readline().decode().split()
            pids[name] = int(pid)
        try:
            yield process, pids
        finally:
            process.kill()
    assert_die(pids.values())


async def test_killing_the_launcher_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / "run"
    scratch.mkdir()
    (scratch / "socket").touch()
    with launcher(scratch) as (process, pids):
        assert all(is_alive(pid) for pid in pids.values())
        process.send_signal(signal.SIGKILL)
        assert_die(pids.values())
    assert not scratch.exists()


async def test_killing_the_replica_kills_the_rest_of_its_tree() -> None:
    async with guarded() as process:
        pids = await pids_of(process)
        os.kill(pids["replica"], signal.SIGKILL)
        assert await process.wait() == 128 + signal.SIGKILL
        assert not any(is_alive(pid) for pid in pids.values())


async def test_killing_the_guardian_is_noticed_and_the_tree_is_killed_by_its_mark() -> None:
    async with guarded("stubborn") as process:
        pids = await pids_of(process)
        assert sorted(marked_processes(f"w-{os.getpid()}")) == sorted([*pids.values(), process.guardian_pid])
        os.kill(process.guardian_pid, signal.SIGKILL)
        assert await process.wait() == 128 + signal.SIGKILL
        assert_die(pids.values())


async def test_a_polite_stop_reaches_the_replica_and_reports_its_code() -> None:
    async with guarded("polite") as process:
        pids = await pids_of(process)
        process.stop()
        assert await process.wait() == 7
        assert not any(is_alive(pid) for pid in pids.values())


async def test_a_plain_sigterm_to_the_guardian_is_a_polite_stop() -> None:
    async with guarded("polite") as process:
        await pids_of(process)
        os.kill(process.guardian_pid, signal.SIGTERM)
        assert await process.wait() == 7


async def test_a_replica_that_ignores_the_polite_stop_is_killed_after_the_grace_period() -> None:
    async with guarded("stubborn", grace_s=0.2) as process:
        pids = await pids_of(process)
        process.stop()
        with anyio.fail_after(20):
            assert await process.wait() == 128 + signal.SIGKILL
        assert not any(is_alive(pid) for pid in pids.values())


async def test_killing_cuts_a_polite_stop_short() -> None:
    async with guarded("stubborn", grace_s=600) as process:
        await pids_of(process)
        process.stop()
        process.kill()
        with anyio.fail_after(20):
            assert await process.wait() == 128 + signal.SIGKILL


async def test_a_replica_that_exits_by_itself_takes_its_stragglers_along() -> None:
    async with guarded("exits") as process:
        pids = await pids_of(process)
        assert await process.wait() == 3
        assert not any(is_alive(pid) for pid in pids.values())


async def test_a_large_standard_input_arrives_whole() -> None:
    code = "import sys; sys.exit(len(sys.stdin.buffer.read()) != 1_000_000)"
    process = await GuardedProcess.start(
        [sys.executable, "-c", code],
        worker_id="big",
        environment=os.environ,
        grace_s=1,
        stdin=b"x" * 1_000_000,
    )
    assert await process.wait() == 0
    await process.aclose()


async def test_a_command_that_does_not_exist_says_so() -> None:
    process = await GuardedProcess.start(
        ["./no-such-python"], worker_id="none", environment=os.environ, grace_s=1
    )
    said = b"".join([piece async for piece in process.output()])
    assert await process.wait() == 127
    assert said == b"cannot start ./no-such-python: No such file or directory\n"
    await process.aclose()


async def test_a_process_that_cannot_be_started_is_a_launch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LaunchError, match="cannot start a process"):
        await GuardedProcess.start(["true"], worker_id="none", environment=os.environ, grace_s=1)
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_passed_descriptor_is_held_by_the_replica_only() -> None:
    read_end, write_end = os.pipe()
    code = f"import os; os.write({write_end}, b'here')"
    process = await GuardedProcess.start(
        [sys.executable, "-c", code],
        worker_id="fd",
        environment=os.environ,
        grace_s=1,
        pass_fds=(write_end,),
    )
    os.close(write_end)
    with os.fdopen(read_end, "rb") as reader:
        assert await anyio.to_thread.run_sync(reader.read) == b"here"
    assert await process.wait() == 0
    await process.aclose()
