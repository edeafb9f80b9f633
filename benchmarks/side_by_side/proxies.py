"""Peer routers as proxies: what they add to a request in front of our frontend."""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.side_by_side.stacks import READY_LIMIT_S, Stack, StackFailed, process

MODULES = {"sglang-router": "sglang_router.launch_router", "vllm-router": "vllm_router.launch_router"}


@contextlib.contextmanager
def router(name: str, *, python: Path, port: int, behind: Stack, folder: Path) -> Iterator[Stack]:
    """The router as a `Stack` whose frontend is the proxy alone; it sends all requests to ``behind``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", MODULES[name], "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{behind.port}", "--policy", "round_robin"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(port + 1), "--log-level", "error"]
    with process(command, environment={}, folder=folder, log=f"{name}.log") as child:
        await_health(name, port, child, folder)
        pids = (child.pid, *(one.pid for one in child.children(recursive=True)))
        yield Stack(name=name, port=port, frontend_pids=pids, worker_pids=())


def await_health(name: str, port: int, child: psutil.Process, folder: Path) -> None:
    """Return when the router passes a request on. Raises `StackFailed`."""
    end = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < end and child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2):
                return
        time.sleep(0.1)
    raise StackFailed(f"{name} is not ready:\n{(folder / f'{name}.log').read_text(errors='replace')[-2000:]}")
