"""A launcher from start to end, under the signals of a terminal or a process manager.

::

    start ──> wait until ready ──> print `ready URL` ──> wait ──first signal──> drain ──> stop
                                                           └──second signal, any time──> stop at once
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import sys

import anyio
import anyio.abc

from dynamo_sdk.errors import LaunchError
from dynamo_sdk.interfaces import Launcher
from dynamo_sdk.launch.exits import innermost, is_debug

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(launcher: Launcher) -> None:
    """Serve until a signal. Raises ``LaunchError`` when the graph fails or had to be stopped at once."""
    logging.basicConfig(level=logging.DEBUG if is_debug() else logging.WARNING, format="%(message)s")
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        anyio.run(serve, launcher, backend_options={"use_uvloop": has_uvloop})
    except BaseExceptionGroup as group:
        raise innermost(group) from None


async def serve(launcher: Launcher) -> None:
    """See ``run_until_stopped``; for whoever has an event loop."""
    asked = anyio.Event()
    is_drained = False
    async with anyio.create_task_group() as tasks:
        await tasks.start(_follow_signals, asked, tasks.cancel_scope)
        async with launcher:
            async with anyio.create_task_group() as running:
                running.start_soon(_cancel_after, asked, running.cancel_scope)
                _print_ready(await launcher.wait_ready())
                await launcher.wait_failed()
            logger.warning("stopping; a second signal stops at once")
            await launcher.drain()
        is_drained = True
        tasks.cancel_scope.cancel()
    if not is_drained:
        raise LaunchError("stopped at once; requests that ran were cut off")


async def _follow_signals(
    asked: anyio.Event, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(*STOP_SIGNALS) as signals:
        task_status.started()
        async for _ in signals:
            if asked.is_set():
                scope.cancel()
            asked.set()


async def _cancel_after(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _print_ready(url: str | None) -> None:
    """The one line on standard output; whoever started us waits for it."""
    with contextlib.suppress(OSError):
        sys.stdout.write("ready\n" if url is None else f"ready {url}\n")
        sys.stdout.flush()
