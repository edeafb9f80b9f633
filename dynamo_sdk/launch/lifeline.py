"""The replica's end of its lifeline: when the guardian dies, so do the replica and all below it.

A thread waits, because the event loop may be busy in an engine for long. ``os.read`` needs no attention
until the pipe ends; nobody ever writes to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from .guardian import LIFELINE_VARIABLE, descendants


def watch_lifeline() -> None:
    """Start to watch; without a guardian there is nothing to watch. Call once, early."""
    named = os.environ.pop(LIFELINE_VARIABLE, None)
    if named is not None:
        descriptor = int(named)
        os.set_inheritable(descriptor, False)
        threading.Thread(target=_wait_for_end, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait_for_end(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    own = os.getpid()
    for pid in (*descendants(own), own):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
