"""Which machine this is, so that two processes can tell whether shared memory can work between them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import msgspec


class HostIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, one boot of it, and the view of its processes.

    The boot id alone is not enough (snapshots of virtual machines share it), nor is the machine id
    (images share it). Processes of two pid namespaces cannot name each other in ``/proc``.
    """

    machine_id: str
    boot_id: str
    pid_namespace: str

    def is_same_kernel(self, other: HostIdentity) -> bool:
        """Unix sockets can work: both run on one boot of one machine."""
        return (self.machine_id, self.boot_id) == (other.machine_id, other.boot_id)

    def can_share_memory(self, other: HostIdentity) -> bool:
        """Mapping can work: moreover both call the same process by the same number."""
        return self == other


@functools.cache
def host_identity() -> HostIdentity:
    """The identity of the host that this process runs on. The first call reads files."""
    try:
        pid_namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        # Unreadable on exotic hosts; a value of our own keeps us from sharing memory by mistake.
        pid_namespace = f"unknown:{os.getpid()}"
    return HostIdentity(
        machine_id=_first_line("/etc/machine-id"),
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
        pid_namespace=pid_namespace,
    )


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
