"""Files that blocks lie in: whole buffers at aligned offsets, or an ``OSError``."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from dynamo_sdk.transfer.host_pages import PAGE_BYTES, private_memory
from dynamo_sdk.transfer.spans import MAX_BUFFERS, buffers_after


class BlockFile(ABC):
    """Thread-safe. Offsets, sizes and addresses are multiples of 4096 where ``is_direct``."""

    is_direct: bool

    @abstractmethod
    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """All of ``buffers``, one after the other. Raises ``OSError``; then any part may be written."""

    @abstractmethod
    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill all of ``buffers``. Raises ``OSError``, also when the file ends before."""

    @abstractmethod
    def truncate(self, num_bytes: int) -> None:
        """Cut off what lies behind; a shorter file stays as it is."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


class OsBlockFile(BlockFile):
    """``wants_direct``: past the page cache, where the file system can do that (``is_direct`` tells)."""

    def __init__(self, path: Path, *, wants_direct: bool) -> None:
        self.is_direct = wants_direct and _takes_direct_io(path.with_name(path.name + ".probe"))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_DIRECT if self.is_direct else 0)
        self._fd = os.open(path, flags, 0o600)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        pending = list(buffers)
        while pending:
            num_bytes = os.pwritev(self._fd, pending[:MAX_BUFFERS], offset)
            if not num_bytes:
                raise OSError(errno.EIO, "the file takes no more bytes")
            offset += num_bytes
            pending = buffers_after(pending, num_bytes)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        pending = list(buffers)
        while pending:
            num_bytes = os.preadv(self._fd, pending[:MAX_BUFFERS], offset)
            if not num_bytes:
                raise OSError(errno.ENODATA, "the file is shorter than it should be")
            offset += num_bytes
            pending = buffers_after(pending, num_bytes)

    def truncate(self, num_bytes: int) -> None:
        if os.fstat(self._fd).st_size > num_bytes:
            os.ftruncate(self._fd, num_bytes)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _takes_direct_io(path: Path) -> bool:
    """Some file systems refuse the flag, others the first read or write."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DIRECT, 0o600)
    except OSError:
        path.unlink(missing_ok=True)
        return False
    page = private_memory(PAGE_BYTES)
    try:
        return os.pwritev(fd, [page], 0) == PAGE_BYTES == os.preadv(fd, [page], 0)
    except OSError:
        return False
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
