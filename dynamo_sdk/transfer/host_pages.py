"""Host memory for KV blocks, in large pages where the kernel gives them.

KV blocks lie scattered over gigabytes, and with small pages a processor searches page tables about as long
as it copies: blocks of 64 KiB went at 9 to 10 GB/s, in pages of 2 MiB at 16 to 17 (one core of a virtual
machine, 21 November 2026).

========  ==================================================================================================
private   asked for with ``MADV_HUGEPAGE`` (``transparent_hugepage/enabled``: ``madvise`` or ``always``)
shared    collected with ``MADV_COLLAPSE`` (Linux 6.1), which does not depend on ``shmem_enabled``; another
          process that maps the file in the same alignment finds its large pages there
========  ==================================================================================================

Both are requests. Where the kernel refuses, pages are small and everything works as before.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

import psutil

from dynamo_sdk.interfaces import SharedRegion

PAGE_BYTES = mmap.PAGESIZE
LARGE_PAGE_BYTES = 2 << 20

_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def private_memory(num_bytes: int, *, is_populated: bool = False) -> memoryview:
    """Zeroed, page-aligned memory of this process. ``is_populated``: the kernel gives all pages now instead
    of at first use. Raises ``OSError`` when there is not so much."""
    memory = memoryview(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    if num_bytes >= LARGE_PAGE_BYTES:
        _advise(memory, mmap.MADV_HUGEPAGE)
    if is_populated:
        _populate(memory)
    return memory


class SharedMemory:
    """Zeroed memory in an anonymous file (``memfd``) that other processes of this host can map.

    ``is_populated``: all pages are there from now on, and large where they can be, unless the machine has not
    as much memory to give. Otherwise the kernel gives small ones at first use. The file is sealed against
    resizing: a reader in another process can never be hit by SIGBUS. ``close`` ends the sharing; the bytes
    live on until the last view of ``memory`` is gone.
    """

    def __init__(self, name: str, num_bytes: int, *, is_populated: bool = True) -> None:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close_fd = weakref.finalize(self, os.close, fd)
        try:
            os.ftruncate(fd, num_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.memory = map_shared(fd, num_bytes)
        except BaseException:
            self._close_fd()
            raise
        if is_populated:
            _collect_large_pages(self.memory)
        self._region = SharedRegion(pid=os.getpid(), fd=fd, size_bytes=num_bytes)

    @property
    def region(self) -> SharedRegion | None:
        """None once closed."""
        return self._region if self._close_fd.alive else None

    def close(self) -> None:
        """Idempotent."""
        self._close_fd()


def map_shared(fd: int, num_bytes: int, *, is_writable: bool = True) -> memoryview:
    """The file's bytes, where large pages fit. Unmapped with the last view of them. Raises ``OSError``."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE if is_writable else mmap.PROT_READ
    if num_bytes < LARGE_PAGE_BYTES:
        return memoryview(mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED, prot=protection))
    # The kernel aligns shared files to small pages only, and Python's mmap takes no address: reserve more
    # than is needed, map the file over the aligned part, and give the rest back.
    reserved_bytes = num_bytes + LARGE_PAGE_BYTES
    reserved = _mmap(None, reserved_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    start = -(-reserved // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
    end = -(-(start + num_bytes) // PAGE_BYTES) * PAGE_BYTES
    try:
        _mmap(start, num_bytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)
    except OSError:
        _libc.munmap(reserved, reserved_bytes)
        raise
    for unused, unused_end in ((reserved, start), (end, reserved + reserved_bytes)):
        if unused < unused_end:
            _libc.munmap(unused, unused_end - unused)
    array = (ctypes.c_ubyte * num_bytes).from_address(start)
    unmap = weakref.finalize(array, _libc.munmap, start, num_bytes)
    unmap.atexit = False  # threads may still be copying while the interpreter ends
    memory = memoryview(array).cast("B")
    return memory if is_writable else memory.toreadonly()


def _mmap(address: int | None, num_bytes: int, protection: int, flags: int, fd: int) -> int:
    mapped: int | None = _libc.mmap(address, num_bytes, protection, flags, fd, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {num_bytes} bytes: {os.strerror(code)}")
    return mapped


def _collect_large_pages(memory: memoryview) -> None:
    """And small ones for what is left. Takes about a second per GiB."""
    num_bytes = len(memory)
    if num_bytes > psutil.virtual_memory().available:
        return
    if num_bytes >= LARGE_PAGE_BYTES:
        for start in range(0, num_bytes, LARGE_PAGE_BYTES):
            memory[start] = 0  # what has no page at all is not collected
        _advise(memory, _MADV_COLLAPSE)
    _populate(memory)


def _populate(memory: memoryview) -> None:
    """Untouched memory is zero, and stays so."""
    if not _advise(memory, _MADV_POPULATE_WRITE):
        ctypes.memset(_address(memory), 0, len(memory))


def _advise(memory: memoryview, advice: int) -> bool:
    """Whether the kernel took it. ``mmap.madvise`` would keep the interpreter's lock meanwhile."""
    return bool(_libc.madvise(_address(memory), len(memory), advice) == 0)


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
