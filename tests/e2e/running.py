"""``dynamo-sdk run`` as users run it: a process, its one line, its tree."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.launch.deaths import assert_die

GRAPHS = Path(__file__).parent / "graphs.py"
COMMAND = [sys.executable, "-c", "from dynamo_sdk.cli import main; main()"]
TIMEOUT_S = 60.0


class RunningGraph:
    """The command under test. ``wait_for`` reads its log, line by line, until one matches."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_ready(self) -> str:
        """Read the one line of standard output; the URL in it, or an empty string."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready"):
            self.wait_ended()
            raise AssertionError(f"no ready line but {line!r}; the log was:\n" + "\n".join(self.log))
        self.url = line.removeprefix("ready").strip()
        return self.url

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line after those already read that matches."""
        while True:
            try:
                line = self._lines.get(timeout=TIMEOUT_S)
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"nothing matched {pattern!r}; the log was:\n" + "\n".join(self.log))
            self.log.append(line)
            if found := re.search(pattern, line):
                return found

    def wait_ended(self) -> int:
        """The exit code; ``log`` is complete then."""
        code = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        while (line := self._lines.get()) is not None:
            self.log.append(line)
        return code

    def tree(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def replica(self, service: str) -> int:
        """The process of a replica of ``service``."""
        for pid in self.tree():
            try:
                environment = psutil.Process(pid).environ()
                command = psutil.Process(pid).cmdline()
            except psutil.Error:
                continue
            is_replica = "dynamo_sdk.launch.replica_main" in command and "-I" not in command
            if is_replica and environment.get("DYNAMO_SDK_WORKER_ID", "").startswith(f"{service}."):
                return pid
        raise AssertionError(f"no process of {service}")

    def close(self) -> None:
        """End everything, whatever the test left running."""
        pids = self.tree() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        assert_die(pids)
        self._reader.join(TIMEOUT_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def run_graph(
    *words: str, name: str = "graph", engine: str = "echo", wait: bool = True, secret: str | None = None
) -> Iterator[RunningGraph]:
    services = ("Prefill", "Decode") if name == "graph" else ("Whole",)
    engines = [word for service in services for word in ("--set", f"services.{service}.engine={engine}")]
    environment = {**os.environ, **({} if secret is None else {"DYNAMO_SDK_SECRET": secret})}
    process = subprocess.Popen(
        [*COMMAND, "run", f"{GRAPHS}:{name}", "--port", "0", *engines, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    graph = RunningGraph(process)
    try:
        if wait:
            graph.wait_ready()
        yield graph
    finally:
        graph.close()


def stop(graph: RunningGraph, number: signal.Signals = signal.SIGINT) -> int:
    """Stop it politely; the exit code."""
    graph.process.send_signal(number)
    return graph.wait_ended()
