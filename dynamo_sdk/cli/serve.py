"""A launcher from start to end, under the signals of a terminal or a process manager.

::

    start ──> wait until ready ──> print `ready URL` ──> wait ──first signal──> drain ──> stop
                                                           └──second signal, any time──> stop at once
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator

import anyio
import anyio.abc

from dynamo_sdk.errors import LaunchError
from dynamo_sdk.interfaces import Launcher
from dynamo_sdk.launch.exits import innermost, is_debug

logger = logging.getLogger(__name__)

PARENT_POLL_S = 1.0


@contextlib.contextmanager
def quiet_stdout() -> Iterator[Callable[[str], None]]:
    """Keep standard output for our own lines: whoever started us waits there for ``ready``.

    Yields what prints them. All else that this process or a child of it writes goes to standard error,
    from a ``print`` in the user's graph to a C library's banner.
    """
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)

    def answer(line: str) -> None:
        with contextlib.suppress(OSError):  # a reader that is gone is no reason to stop serving
            os.write(answers, f"{line}\n".encode())

    try:
        yield answer
    finally:
        sys.stdout.flush()
        os.dup2(answers, 1)
        os.close(answers)


def run_until_stopped(
    launcher: Launcher, answer: Callable[[str], None], *, parent_pid: int | None = None
) -> None:
    """Serve until a signal, or until this process is no child of ``parent_pid`` any more; ``answer`` prints
    the ready line. Raises ``LaunchError`` when the graph fails or had to be stopped at once."""
    logging.basicConfig(level=logging.DEBUG if is_debug() else logging.WARNING, format="%(message)s")
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        anyio.run(serve, launcher, answer, parent_pid, backend_options={"use_uvloop": has_uvloop})
    except BaseExceptionGroup as group:
        raise innermost(group) from None


async def serve(launcher: Launcher, answer: Callable[[str], None], parent_pid: int | None = None) -> None:
    """See ``run_until_stopped``; for whoever has an event loop."""
    asked = anyio.Event()
    is_drained = False
    async with anyio.create_task_group() as tasks:
        await tasks.start(_follow_signals, asked, tasks.cancel_scope)
        if parent_pid is not None:
            tasks.start_soon(_follow_parent, asked, parent_pid)
        async with launcher:
            async with anyio.create_task_group() as running:
                running.start_soon(_cancel_after, asked, running.cancel_scope)
                url = await launcher.wait_ready()
                answer("ready" if url is None else f"ready {url}")
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
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup, the terminal may go
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for _ in signals:
            if asked.is_set():
                scope.cancel()
            asked.set()


async def _follow_parent(asked: anyio.Event, parent_pid: int) -> None:
    """A child that has lost its parent gets another one."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - not every system has an event for it
        await anyio.sleep(PARENT_POLL_S)
    logger.warning("the process that started this one (%d) is gone", parent_pid)
    asked.set()


async def _cancel_after(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
