"""``python -m dynamo_sdk.launch.replica_main``: one replica's process, with its spec on standard input.

SIGTERM drains. Ctrl-C of the terminal is left to the launcher, which drains in the right order. Whatever
ends the replica is one readable block on standard error, and an exit code: 0, 1, or 2 for the user's
mistake.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import signal
import sys

import anyio
import msgspec

from dynamo_sdk.runtime.replica import ReplicaSpec, run_replica

from .exits import EXIT_CLEAN, exit_code, innermost, is_debug, readable
from .idle_memory import trim_when_idle
from .lifeline import watch_lifeline

CHATTY_LOGGERS = ("httpx",)
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"


NEW_OBJECTS_PER_COLLECTION = 50_000
"""Requests come and go without cycles, so looking for some every 700 objects (Python's default) finds
nothing and takes a tenth of a busy frontend's time. This many take the collector under a millisecond."""


def spare_the_collector() -> None:
    """What is there once a replica is ready stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_PER_COLLECTION, 20, 20)


async def serve(spec: ReplicaSpec) -> None:
    """Run the replica until SIGTERM, then drain. Raises ``DynamoError``."""

    def on_ready() -> None:
        spare_the_collector()
        if spec.plan.service(spec.service).is_frontend:
            trim_when_idle()

    stop = anyio.Event()

    async def listen(scope: anyio.CancelScope) -> None:
        with scope, anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                stop.set()

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(listen, scope)
        await run_replica(spec, stop, on_ready=on_ready)
        scope.cancel()


def main() -> int:
    watch_lifeline()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.DEBUG if is_debug() else logging.INFO, format=LOG_FORMAT)
    if not is_debug():
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        spec = msgspec.json.decode(sys.stdin.buffer.read(), type=ReplicaSpec)
        has_uvloop = importlib.util.find_spec("uvloop") is not None
        anyio.run(serve, spec, backend_options={"use_uvloop": has_uvloop})
    except Exception as error:
        cause = innermost(error)
        sys.stderr.write(readable(cause) + "\n")
        return exit_code(cause)
    return EXIT_CLEAN


if __name__ == "__main__":
    sys.exit(main())
