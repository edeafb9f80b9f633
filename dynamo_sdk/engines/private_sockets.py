"""Where an engine in processes of its own is reached by its worker, and by nobody else."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack

from .zmq_events import EventEndpoints

EVENT_PORT, REPLAY_PORT = 1000, 2000
MAX_FOLDER_BYTES = 50


def make_private_folder(name: str) -> str:
    """A folder whose sockets have short names: the path of one may have some 107 bytes. ``name``: whose."""
    root = tempfile.gettempdir()
    fitting = root if len(os.fsencode(root)) <= MAX_FOLDER_BYTES else "/tmp"
    return tempfile.mkdtemp(prefix=f"dynamo-sdk-{name}-", dir=fitting)


def private_endpoints(folder: str, dp_rank: int) -> EventEndpoints:
    """For KV events, which carry prompts. vLLM and SGLang add a rank to what looks like a port."""
    return EventEndpoints(
        dp_rank=dp_rank,
        publisher=f"ipc://{folder}/tcp:{EVENT_PORT + dp_rank}",
        replay=f"ipc://{folder}/replay-tcp:{REPLAY_PORT + dp_rank}",
    )


def free_ports(host: str, num_ports: int = 1) -> int:
    """The first of several in a row that nobody has, now."""
    while True:
        with ExitStack() as probes:
            first = probes.enter_context(socket.create_server((host, 0)))
            port: int = first.getsockname()[1]
            try:
                for number in range(1, num_ports):
                    probes.enter_context(socket.create_server((host, port + number)))
            except (OSError, OverflowError):
                continue
            return port
