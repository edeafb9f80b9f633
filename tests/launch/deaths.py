"""Waiting for the death of processes that are not our children: an event of the kernel, with a deadline."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from pathlib import Path

DEADLINE_S = 20.0


def assert_die(pids: Iterable[int], *, deadline_s: float = DEADLINE_S) -> None:
    """Return when every process has ended (a zombie has); fail when one has not by the deadline."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], deadline_s)[0], f"{describe(pid)} still runs"
        finally:
            os.close(descriptor)


def is_alive(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in (b"Z", b"X")


def describe(pid: int) -> str:
    try:
        return f"{pid} ({Path('/proc', str(pid), 'cmdline').read_bytes().replace(bytes(1), b' ').decode()})"
    except FileNotFoundError:
        return str(pid)
