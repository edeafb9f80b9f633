"""Mapping another process's block memory through ``/proc``, and our own for copies without a detour.

A mapping is never closed by hand: its last memory view unmaps it, so that a copy in flight stays safe
when the peer that owns the memory goes away.
"""

from __future__ import annotations

import logging
import os
import threading

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces import BlockMemory, SharedRegion

from .host_pages import map_shared
from .ticket import RegionTicket

logger = logging.getLogger(__name__)


def describe_region(region: SharedRegion) -> RegionTicket:
    """The region as others will find it. Raises ``OSError`` when even we cannot reach it."""
    if region.pid == os.getpid():
        inode = os.fstat(region.fd).st_ino
    else:
        fd = os.open(_proc_path(region.pid, region.fd), os.O_RDONLY | os.O_CLOEXEC)
        try:
            inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
    return RegionTicket(pid=region.pid, fd=region.fd, size_bytes=region.size_bytes, inode=inode)


def map_region(region: RegionTicket, *, is_writable: bool = False) -> memoryview:
    """The region's bytes. Raises ``OSError`` when the kernel refuses, ``TransferError`` when the file
    that was found is not the one that was meant."""
    path = _proc_path(region.pid, region.fd)
    fd = os.open(path, (os.O_RDWR if is_writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_ino != region.inode:
            raise TransferError(f"{path} is not the memory of the ticket; its process is gone")
        if found.st_size < region.size_bytes:
            raise TransferError(f"{path} holds {found.st_size} bytes, the ticket says {region.size_bytes}")
        return map_shared(fd, region.size_bytes, is_writable=is_writable)
    finally:
        os.close(fd)


class Mappings:
    """Mapped memories, the last few of them. Thread-safe."""

    def __init__(self, *, is_writable: bool = False, capacity: int = 4) -> None:
        self._is_writable = is_writable
        self._capacity = capacity
        self._lock = threading.Lock()
        self._mapped: dict[RegionTicket, memoryview | None] = {}  # None = tried in vain

    def map(self, region: RegionTicket) -> memoryview | None:
        """None when it cannot be mapped; the reason is logged once."""
        with self._lock:
            if region not in self._mapped:
                if len(self._mapped) >= self._capacity:
                    del self._mapped[next(iter(self._mapped))]
                try:
                    self._mapped[region] = map_region(region, is_writable=self._is_writable)
                except (OSError, TransferError) as error:
                    logger.warning(
                        "cannot map the KV blocks of process %d, copying slower: %s", region.pid, error
                    )
                    self._mapped[region] = None
            return self._mapped[region]

    def clear(self) -> None:
        """Let go of everything; what is being copied right now stays mapped until that is done."""
        with self._lock:
            self._mapped.clear()

    def map_own(self, memory: BlockMemory) -> memoryview | None:
        """The memory of our own engine, in place; None when it is not in mappable memory."""
        shared = memory.shared_region
        if shared is None:
            return None
        try:
            return self.map(describe_region(shared))
        except OSError:
            return None


def _proc_path(pid: int, fd: int) -> str:
    return f"/proc/{pid}/fd/{fd}"
