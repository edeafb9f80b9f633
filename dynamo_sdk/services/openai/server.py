"""Run the application on a listening socket with uvicorn: no signal handlers, bounded, with a drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from .app import OpenAIApp
from .connection import bounded_connection


async def serve(app: OpenAIApp, listener: socket.socket, *, shutdown: asyncio.Event) -> None:
    """Serve on ``listener``, bound and listening or not yet, until ``shutdown`` is set; then stop accepting,
    let answers end for ``limits.drain_timeout_s``, cancel the rest and return. Closes ``listener``.

    Cancelling it skips the waiting: what runs is cancelled at once.
    """
    limits = app.limits
    config = uvicorn.Config(
        app,
        http=bounded_connection(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.keep_alive_s),
        timeout_graceful_shutdown=None,
    )
    server = _Server(config)
    stopper = asyncio.create_task(_stop_when(shutdown, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        listener.close()


async def _stop_when(shutdown: asyncio.Event, server: uvicorn.Server) -> None:
    await shutdown.wait()
    server.should_exit = True


class _Server(uvicorn.Server):
    """Signals belong to whoever runs the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
