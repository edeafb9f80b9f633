"""The guardian of one replica: no process of the replica's tree outlives the launcher.

Run as ``python -I -S guardian.py LIFELINE GRACE_S SCRATCH PASSED COMMAND...``; standard library only, so
that it is there in some 20 ms and cannot fail with the environment that it guards.

::

    launcher ──lifeline──> guardian ──lifeline──> replica ─> its children ─> ...
             (write end)            (write end)

The lifeline is a pipe that nobody writes to but its one owner, so the reader learns of the owner's death
from the kernel, however the owner died. One byte on it is an order, its end is one too:

====================  ==============================================================================
``T`` or a SIGTERM    SIGTERM to the replica, and what is left ``GRACE_S`` later is killed
``K``                 kill the whole tree now
end of the pipe       the launcher is gone: kill the whole tree now, remove the ``SCRATCH`` folder
replica's exit        kill what it left behind, exit with its code (128 + n for signal n)
====================  ==============================================================================

On Linux the guardian is a *child subreaper*: a grandchild that daemonises becomes the guardian's own
child instead of init's. So "no child left" means "no process of the tree left", and that is the condition
on which the guardian exits. Elsewhere it kills the replica's process group, which a daemon can leave.

If the guardian itself is killed, the replica sees the end of its own lifeline (the descriptor named by
the environment variable ``DYNAMO_SDK_LIFELINE``), and the launcher kills whatever carries the worker's
mark in its environment (see ``processes.py``).
"""

import contextlib
import os
import select
import signal
import sys
import time

LIFELINE_VARIABLE = "DYNAMO_SDK_LIFELINE"
ORDER_STOP = b"T"
ORDER_KILL = b"K"
KILLED = 128 + signal.SIGKILL
CANNOT_START = 127

_PR_SET_CHILD_SUBREAPER = 36
_RESCAN_S = 0.05


def become_subreaper() -> bool:
    """Adopt every orphan of the tree below this process. False where the system cannot (not Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # 5 ms, and not there on every Python

    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def descendants(root: int) -> list[int]:
    """Every process below ``root`` now, parents first; empty where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])  # a name may hold anything
                    children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:  # grows while it runs
        found.extend(children.get(pid, ()))
    return found[1:]


class Guardian:
    """Watches one replica from its start to the end of its tree."""

    def __init__(self, lifeline: int, grace_s: float) -> None:
        self._lifeline = lifeline
        self._grace_s = grace_s
        self._replica = 0
        self._code: int | None = None
        self._is_stopping = False
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the launcher's business
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_stop_signal)

    def start(self, command: list[str]) -> None:
        """Start the replica in a session of its own. Raises ``OSError``."""
        replica_end, self._replica_lifeline = os.pipe()
        os.set_inheritable(replica_end, True)
        self._replica = os.posix_spawnp(
            command[0],
            command,
            {**os.environ, LIFELINE_VARIABLE: str(replica_end)},
            setsid=True,
            setsigdef=[signal.SIGINT, signal.SIGPIPE],
        )
        os.close(replica_end)

    def watch(self) -> tuple[int, bool]:
        """Return when no process of the tree is left: the exit code, and whether the launcher is gone."""
        is_launcher_gone = False
        deadline_s = None
        while self._has_children() and self._code is None:
            if self._is_stopping and deadline_s is None:
                deadline_s = time.monotonic() + self._grace_s
                self._signal_replica(signal.SIGTERM)
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            if self._lifeline in self._wait((self._lifeline, self._wake), left_s):
                order = os.read(self._lifeline, 1)
                is_launcher_gone = not order
                if order != ORDER_STOP:
                    break
                self._is_stopping = True
        self._kill_tree()
        return (KILLED if self._code is None else self._code), is_launcher_gone

    def _kill_tree(self) -> None:
        """SIGKILL until nothing is left: a process may fork between our look and our shot."""
        while self._has_children():
            if self._code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._replica, signal.SIGKILL)
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._wait((self._wake,), _RESCAN_S)

    def _has_children(self) -> bool:
        """Reap what has ended; False once nothing is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._replica:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code

    def _wait(self, descriptors: tuple[int, ...], timeout_s: float | None) -> list[int]:
        ready = select.select(descriptors, (), (), timeout_s)[0]
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        return ready

    def _signal_replica(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._replica, number)

    def _on_stop_signal(self, *_: object) -> None:
        self._is_stopping = True


def main(arguments: list[str]) -> int:
    lifeline, grace_s, scratch, passed, *command = arguments
    os.set_inheritable(int(lifeline), False)
    become_subreaper()
    guardian = Guardian(int(lifeline), float(grace_s))
    try:
        guardian.start(command)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return CANNOT_START
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the replica got must not live on in us:
    for descriptor in filter(None, passed.split(",")):  # a socket held here would never close
        os.close(int(descriptor))
    code, is_launcher_gone = guardian.watch()
    if is_launcher_gone and scratch:
        import shutil

        shutil.rmtree(scratch, ignore_errors=True)
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # at once: no buffer to flush, nobody to tell
