"""Run the application on a listening socket with uvicorn: no signal handlers, bounded, with a drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from .app import OpenAIApp
from .connection import bounded_connection

_CLEAN_UP_S = 5.0
"""How long cancelled requests may take to free what they hold."""


async def serve(app: OpenAIApp, listener: socket.socket, *, shutdown: asyncio.Event) -> None:
    """Serve on the bound socket ``listener`` until ``shutdown`` is set; then stop accepting, let answers
    end for ``limits.drain_timeout_s``, cancel the rest and return. Closes ``listener``.

    Cancelling it skips the waiting. However it ends, no request runs and no connection is open after it.
    """
    limits = app.limits
    config = uvicorn.Config(
        app,
        http=bounded_connection(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # its warnings are about what clients do, and they can do it often
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # fractions work
        timeout_graceful_shutdown=limits.drain_timeout_s,  # type: ignore[arg-type]
    )
    server = _Server(config)
    stopper = asyncio.create_task(_stop_when(shutdown, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        await server.end()
        listener.close()


async def _stop_when(shutdown: asyncio.Event, server: uvicorn.Server) -> None:
    await shutdown.wait()
    server.should_exit = True


class _Server(uvicorn.Server):
    """Signals belong to whoever runs the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def end(self) -> None:
        """Close what uvicorn leaves open when it is cancelled or its grace period ends."""
        for listening in getattr(self, "servers", ()):
            listening.close()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLEAN_UP_S)
        for connection in list(self.server_state.connections):
            connection.transport.close()
