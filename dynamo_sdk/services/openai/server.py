"""Serve the application on a listening socket: bounded, with a drain."""

from __future__ import annotations

import asyncio
import socket

from .connections import Application, Connections

_CLEAN_UP_S = 5.0
"""How long cancelled requests may take to free what they hold, and clients to take the end of an answer."""


async def serve(app: Application, listener: socket.socket, *, shutdown: asyncio.Event) -> None:
    """Serve on the bound socket ``listener`` until ``shutdown`` is set; then stop accepting, let answers
    end for ``limits.drain_timeout_s``, cancel the rest and return. Closes ``listener``.

    Cancelling it skips the waiting. However it ends, no request runs and no connection is open after it.
    """
    connections = Connections(app)
    server = await asyncio.get_running_loop().create_server(connections.make, sock=listener, backlog=2048)
    try:
        await shutdown.wait()
        server.close()
        connections.end()
        await connections.wait_gone(app.limits.drain_timeout_s)
    finally:
        server.close()
        listener.close()
        connections.end()  # also where it was cancelled: no request that waits behind another may begin
        for task in list(connections.tasks):
            task.cancel()
        if connections.tasks:
            await asyncio.wait(connections.tasks, timeout=_CLEAN_UP_S)
        connections.close()
        await connections.wait_gone(_CLEAN_UP_S)
        connections.abort()
        await connections.wait_gone(_CLEAN_UP_S)
