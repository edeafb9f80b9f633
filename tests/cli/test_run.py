"""``dynamo-sdk`` as a command: what it prints, how it exits, what it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.launch.deaths import assert_die

GRAPH = Path(__file__).parent.parent / "launch" / "programs" / "counting.py"
COMMAND = [sys.executable, "-c", "from dynamo_sdk.cli import main; main()"]
TIMEOUT_S = 60


def call(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], check=False, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd
    )


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has printed its one line; whatever happens, its whole tree is gone after."""
    command = [*COMMAND, "run", *words, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ready")
            yield process
        finally:
            process.kill()


def tree_of(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_version_and_help() -> None:
    assert call("--version").stdout.startswith("dynamo-sdk ")
    listed = call("--help")
    assert listed.returncode == 0
    for command in ("run", "plan", "plugins"):
        assert command in listed.stdout
    assert call().returncode == 2


def test_help_is_quick() -> None:
    """Processor time, because this machine may be busy; the promise is 400 ms."""
    probe = (
        "import time; from dynamo_sdk.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "import sys; sys.stderr.write(str(time.process_time()))"
    )
    command = [sys.executable, "-c", probe]
    times_s = []
    while len(times_s) < 5 and min(times_s, default=1.0) >= 0.4:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        times_s.append(float(done.stderr))
    assert min(times_s) < 0.4, times_s


@pytest.fixture
def a_terminal() -> Iterator[None]:
    """As if started from one: under nohup or in the background, children inherit that signals are ignored."""
    numbers = (signal.SIGHUP, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_and_leaves_nothing(number: signal.Signals) -> None:
    with running(f"{GRAPH}:counters", "--set", "services.Counter.replicas=2") as process:
        pids = tree_of(process)
        assert len(pids) == 4  # two guardians, two replicas
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
        assert out == ""  # exactly one line on standard output
        assert "join with --join tcp:127.0.0.1:" in err
    assert_die(pids)


def test_under_nohup_a_hangup_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit that, as nohup's do
    try:
        with running(f"{GRAPH}:counters", "--launcher", "inprocess") as process:
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, err  # two signals that count would have ended it at once
    finally:
        signal.signal(signal.SIGHUP, before)


def test_killing_the_command_leaves_nothing() -> None:
    with running(f"{GRAPH}:counters", "--set", "services.Counter.args.daemon=true") as process:
        pids = tree_of(process)
        assert len(pids) == 3
        process.kill()
        assert_die(pids)


def test_a_command_that_ends_with_its_parent_leaves_nothing() -> None:
    """As `make run` starts it; `make` is killed."""
    words = [*COMMAND, "run", f"{GRAPH}:counters", "--port", "0", "--end-with-parent"]
    parent = f"import subprocess; subprocess.run({words!r})"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        pids = tree_of(process)
        assert len(pids) == 3
        process.kill()
        assert_die(pids)


def test_a_replica_whose_guardian_dies_does_not_need_the_launcher_to_die() -> None:
    with running(f"{GRAPH}:counters", "--set", "services.Counter.args.daemon=true") as process:
        (guardian,) = psutil.Process(process.pid).children()
        below = [child.pid for child in guardian.children(recursive=True)]
        assert len(below) == 2  # the replica, and what it started in a session of its own
        folder = Path(guardian.cmdline()[6])
        process.send_signal(signal.SIGSTOP)
        guardian.kill()
        assert_die(below)
    shutil.rmtree(folder)  # nobody is left who could


def test_a_second_signal_stops_at_once() -> None:
    with running(f"{GRAPH}:counters", "--set", "services.Counter.args.stubborn=true") as process:
        pids = tree_of(process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "a second signal stops at once" not in process.stderr.readline():
            pass
        started_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - started_s < 10
        assert process.returncode == 1
        assert "error: stopped at once" in err
    assert_die(pids)


def test_inprocess_serves_and_drains_too() -> None:
    with running(f"{GRAPH}:counters", "--launcher", "inprocess") as process:
        assert tree_of(process) == []
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err


def test_a_graph_that_fails_exits_with_one() -> None:
    done = call("run", f"{GRAPH}:counters", "--set", "services.Counter.args.fails=true", "--port", "0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: Counter.0 ended with code 1 before it was ready" in done.stderr
    assert "the model has no weights" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback_of_the_replica_and_of_the_command() -> None:
    words = ("run", f"{GRAPH}:counters", "--set", "services.Counter.args.fails=true", "--port", "0")
    for done in (call(*words, "--debug"), call("--debug", *words)):
        assert "Counter.0 | Traceback" in done.stderr
        assert "\nerror: Traceback" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nope.py"], "error: there is no file 'nope.py'"),
        (["run", f"{GRAPH}:nope"], "there is no 'nope'"),
        (["run", str(GRAPH), "--launcher", "nope"], "error: no launcher 'nope'"),
        (["run", str(GRAPH), "--set", "services.Conter.replicas=2"], "Counter"),
        (["run", str(GRAPH), "-f", "nope.yaml"], "cannot read the deploy file"),
        (["run", str(GRAPH), "--only", "Counter"], "needs a graph to join"),
        (["run", str(GRAPH), "--secret-file", "nope"], "cannot read the secret file"),
        (["run", str(GRAPH), "--set", "services.Counter.args.nonsense=1"], "takes no such argument"),
        (["run", str(GRAPH), "--port", "x"], "--port"),
        (["run"], "TARGET"),
        (["serve"], "serve"),
        (["run", f"{GRAPH}:counters", "--launcher", "inprocess", "--only", "A", "--join", "b"], "processes"),
    ],
)
def test_a_users_mistake_is_one_readable_block_and_exit_code_two(words: list[str], message: str) -> None:
    done = call(*words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_dry_run_prints_the_plan_and_starts_nothing() -> None:
    done = call("run", str(GRAPH), "--dry-run")
    assert done.returncode == 0
    assert "services.Counter.replicas" in done.stdout


def test_what_is_left_to_others_takes_nothing_here() -> None:
    done = call("run", str(GRAPH), "--only", "Web", "--join", "tcp:127.0.0.1:1", "--dry-run")
    assert done.returncode == 0
    assert "2 services, 1 process" in done.stdout


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = " ".join([sys.executable, "-c", "'from dynamo_sdk.cli import main; main()'", "plugins --json"])
    done = subprocess.run(
        f"{command} | head -c1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        check=False,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0
    assert done.stderr == ""
