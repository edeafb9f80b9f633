"""One replica's process, as the launcher sees it: its guardian, its lifeline, its output.

What is covered when something is killed with SIGKILL:

* the launcher: every guardian sees the end of its lifeline and kills its tree;
* the replica: its guardian kills the rest of the tree and exits with code 137;
* a guardian: the replica ends itself and its descendants when its lifeline ends, and the launcher
  kills whatever carries the worker's mark, daemons included;
* launcher and guardian at once: the replica does as above. Only a daemon that it started and that has
  already left its tree survives this case.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import anyio
import anyio.abc
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import LaunchError

from . import guardian

MARK_VARIABLE = "DYNAMO_SDK_WORKER_ID"
"""In the environment of a replica and so of everything it starts: the id of the worker."""


def marked_processes(worker_id: str) -> list[int]:
    """Every process of ours that carries this worker's mark, whoever its parent is."""
    mark = f"{MARK_VARIABLE}={worker_id}".encode()
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        found.append(int(name))
    return found


def kill_marked_processes(worker_id: str) -> bool:
    """SIGKILL them; True when there were any, so that the caller looks again."""
    found = marked_processes(worker_id)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


class GuardedProcess:
    """A command under a guardian. ``stop`` and ``kill`` are orders, ``wait`` returns when all is gone."""

    def __init__(self, process: anyio.abc.Process, lifeline: int, worker_id: str) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._worker_id = worker_id

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        worker_id: str,
        environment: Mapping[str, str],
        grace_s: float,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        scratch: Path | None = None,
    ) -> Self:
        """Start ``command`` with ``stdin`` as its whole standard input; output and errors are one stream.

        ``pass_fds`` keep their numbers in the command. ``scratch`` is removed by the guardian when this
        process dies without having said goodbye. Raises ``LaunchError``.
        """
        lifeline_read, lifeline_write = os.pipe()
        arguments = [
            *(sys.executable, "-I", "-S", guardian.__file__),
            *(str(lifeline_read), str(grace_s), str(scratch or ""), ",".join(map(str, pass_fds))),
            *command,
        ]
        try:
            process = await anyio.open_process(
                arguments,
                stderr=-2,  # subprocess.STDOUT
                env={**environment, MARK_VARIABLE: worker_id},
                start_new_session=True,
                pass_fds=(lifeline_read, *pass_fds),
            )
        except OSError as error:
            os.close(lifeline_write)
            raise LaunchError(f"cannot start a process: {error}; check the limits (ulimit -u, -n)") from error
        finally:
            os.close(lifeline_read)
        guarded = cls(process, lifeline_write, worker_id)
        assert process.stdin is not None
        try:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await process.stdin.send(stdin)  # a command that died already tells so by its exit code
            await process.stdin.aclose()
        except BaseException:
            guarded.kill()
            raise
        return guarded

    @property
    def guardian_pid(self) -> int:
        return self._process.pid

    async def output(self) -> AsyncIterator[bytes]:
        """What the command writes, in pieces, until nobody holds the other end."""
        assert self._process.stdout is not None
        async for piece in self._process.stdout:
            yield piece

    def stop(self) -> None:
        """Ask politely: SIGTERM now, SIGKILL when the grace period is over."""
        self._order(guardian.ORDER_STOP)

    def kill(self) -> None:
        """Kill the whole tree now."""
        self._order(guardian.ORDER_KILL)

    async def wait(self) -> int:
        """Return the command's exit code (128 + n for signal n) once no process of its tree is left."""
        code = await self._process.wait()
        while kill_marked_processes(self._worker_id):  # noqa: ASYNC110 (no event tells of a stranger's death)
            await anyio.sleep(0.01)  # only when the guardian itself was killed
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        await checkpoint()
        return code if code >= 0 else 128 - code

    async def aclose(self) -> None:
        """Give the pipes back; call it after ``wait`` and after ``output`` has ended. Idempotent."""
        await self._process.aclose()

    def _order(self, order: bytes) -> None:
        if self._lifeline is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, order)
