"""The servers under test: started on loopback, asked for their model, stopped with all they started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MODEL = "tiny"
READY_LIMIT_S = 120.0
BLOCK_SIZE = 16
MAX_NUM_SEQS = 1024
MAX_NUM_BATCHED_TOKENS = 65536
GRAPH = """from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import Frontend, Worker


@service
class Mock(Worker): ...


@service
class Api(Frontend):
    worker = depends(Mock)


graph = Graph(Api)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What both sides are given alike; but for ``num_frontends``, which is ours."""

    model: Path
    router: str
    speedup: float
    context_length: int
    num_blocks: int
    num_frontends: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    name: str
    port: int
    frontend_pids: tuple[int, ...]
    worker_pids: tuple[int, ...]

    def frontend_rss_mib(self) -> float:
        return sum(psutil.Process(pid).memory_info().rss for pid in self.frontend_pids) / 2**20


class StackFailed(Exception):
    """A server ended, or did not get ready in time; the message ends with the tail of its log."""


@contextlib.contextmanager
def process(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: str
) -> Iterator[psutil.Process]:
    """Started in ``folder``; at the end it and all its descendants are gone."""
    path = folder / log
    with path.open("wb") as output:
        child = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
    handle = psutil.Process(child.pid)
    try:
        yield handle
    finally:
        descendants = handle.children(recursive=True) if child.poll() is None else []
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
        for left in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        child.kill()
        child.wait()


def await_model(port: int, starting: Sequence[psutil.Process], folder: Path) -> None:
    """Return when the server lists the model. Raises `StackFailed`."""
    end = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError, ValueError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as answer:
                if json.load(answer)["data"]:
                    return
        if any(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in starting):
            break
        time.sleep(0.1)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
    raise StackFailed(f"no model on port {port}:\n{logs}")


@contextlib.contextmanager
def ours(settings: Settings, *, tree: Path, port: int, folder: Path) -> Iterator[Stack]:
    """``tree`` holds the `dynamo_sdk` package to measure, which may be another checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.py").write_text(GRAPH)
    args = {
        "speedup_ratio": settings.speedup,
        "block_size": BLOCK_SIZE,
        "num_blocks": settings.num_blocks,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "context_length": settings.context_length,
    }
    values = {
        "services.Mock.engine": "mocker",
        "model.path": settings.model,
        "model.name": MODEL,
        "router": settings.router,
        "services.Api.replicas": settings.num_frontends,
        **{f"services.Mock.args.{name}": value for name, value in args.items()},
    }
    command = [sys.executable, "-c", "from dynamo_sdk.cli import main; main()", "run", "graph.py"]
    command += ["--port", str(port)]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    environment = {"PYTHONPATH": str(tree)}
    with process(command, environment=environment, folder=folder, log="ours.log") as supervisor:
        await_model(port, [supervisor], folder)
        yield Stack(
            name="ours",
            port=port,
            frontend_pids=replica_pids(supervisor, "Api."),
            worker_pids=replica_pids(supervisor, "Mock."),
        )


def replica_pids(supervisor: psutil.Process, mark: str) -> tuple[int, ...]:
    """The processes below the supervisor that are replicas of the service named in ``mark``."""
    found = [
        child.pid
        for child in supervisor.children(recursive=True)
        if child.environ().get("DYNAMO_SDK_WORKER_ID", "").startswith(mark)
        and child.cmdline()[1:3] == ["-m", "dynamo_sdk.launch.replica_main"]
    ]
    if not found:
        raise StackFailed(f"no replica process of {mark}")
    return tuple(found)


@contextlib.contextmanager
def dynamo(settings: Settings, *, python: Path, port: int, folder: Path) -> Iterator[Stack]:
    """Dynamo's frontend and mocker out of the environment that ``python`` belongs to."""
    shutil.rmtree(folder / "kv", ignore_errors=True)
    (folder / "kv").mkdir(parents=True)
    loopback = ("TCP_RPC", "HTTP_RPC", "RPC", "SYSTEM", "EVENT_PLANE", "TCP_RESPONSE_STREAM")
    environment = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(folder / "kv"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DYN_LOG": "warn",
        **{f"DYN_{name}_HOST": "127.0.0.1" for name in loopback},
    }
    shared = ["--discovery-backend", "file"]
    frontend = [str(python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
    frontend += ["--router-mode", settings.router, "--kv-cache-block-size", str(BLOCK_SIZE), *shared]
    worker = [str(python), "-m", "dynamo.mocker", "--model-path", str(settings.model), "--model-name", MODEL]
    worker += ["--num-workers", "1", "--speedup-ratio", str(settings.speedup)]
    worker += ["--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(settings.num_blocks)]
    worker += ["--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS)]
    worker += ["--max-model-len", str(settings.context_length), *shared]
    with (
        process(frontend, environment=environment, folder=folder, log="frontend.log") as first,
        process(worker, environment=environment, folder=folder, log="mocker.log") as second,
    ):
        await_model(port, [first, second], folder)
        yield Stack(name="dynamo", port=port, frontend_pids=(first.pid,), worker_pids=(second.pid,))
