"""A graph without engines: an asker, two counters, and a service that speaks HTTP on the inherited socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

from dynamo_sdk import Graph, depends, endpoint, service
from dynamo_sdk.runtime.service import ManagedService, ServiceContext
from dynamo_sdk.types import WorkerRecord


@service
class Counter:
    def __init__(
        self,
        fails: bool = False,
        exits: int | None = None,
        daemon: bool = False,
        stubborn: bool = False,
        says: str = "",
    ) -> None:
        self.fails, self.exits, self.daemon, self.stubborn = fails, exits, daemon, stubborn
        self.says = says

    async def on_start(self) -> None:
        sys.stdout.write(f"counting with {os.environ.get('OMP_NUM_THREADS')} threads\n{self.says}")
        if self.daemon:
            sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
            subprocess.Popen(sleeper, start_new_session=True)  # noqa: ASYNC220
        if self.exits is not None:
            os._exit(self.exits)
        if self.fails:
            raise RuntimeError("the model has no weights")

    async def on_stop(self) -> None:
        if self.stubborn:
            await asyncio.get_running_loop().create_future()

    @endpoint
    async def pid(self) -> int:
        return os.getpid()


@service
class Web(ManagedService):
    """Answers any HTTP request with the pid of a counter."""

    counter = depends(Counter)

    async def start(self, context: ServiceContext) -> WorkerRecord:
        assert context.http_fd is not None
        listener = socket.socket(fileno=context.http_fd)
        self._server = await asyncio.start_server(self._answer, sock=listener)
        return context.record

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = str(await self.counter.pid()).encode()
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async def close(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()


graph = Graph(Web)
counters = Graph(Counter)
