"""``DiskStore``: blocks in one file on a local disk, found again after a restart.

::

    path/blocks   slot 0 | slot 1 | ...            block_bytes each, rounded up to 4096
    path/table    which slot holds which block, checksums (slot_table.py); locked while a store is open

Blocks go past the page cache where the file system allows it: straight from and into the caller's memory when
that is aligned, else through a buffer of the thread. Neighbouring slots move in one call. Every block
that is read is checked; one that is not what was put is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVStoreFailureKind
from dynamo_sdk.kv import eviction_policy
from dynamo_sdk.transfer.host_copy import address_of
from dynamo_sdk.transfer.host_pages import PAGE_BYTES, private_memory

from .batch import StoreShape
from .block_file import BlockFile, OsBlockFile
from .checksum import block_checksum
from .config import DiskStoreConfig
from .medium import MAX_KEY_BYTES, FoundBlock, SlotJob, SlotMedium
from .slot_store import SlotStore
from .slot_table import SlotTable, TableEntry

logger = logging.getLogger(__name__)

PIECE_BYTES = 4 << 20
"""The most that moves in one call, and between two looks at cancellation (one block, if that is more)."""

_KINDS = {
    errno.ENOSPC: KVStoreFailureKind.FULL,
    errno.EDQUOT: KVStoreFailureKind.FULL,
    errno.EFBIG: KVStoreFailureKind.FULL,
    errno.ENODATA: KVStoreFailureKind.CORRUPT,  # the file was cut off
}

OpenFile = Callable[[Path, bool], BlockFile]
"""Opens the file of the blocks: its path, and whether direct I/O is wanted."""


def open_os_file(path: Path, wants_direct: bool) -> BlockFile:
    return OsBlockFile(path, wants_direct=wants_direct)


class DiskMedium(SlotMedium):
    is_ordered = True

    def __init__(self, config: DiskStoreConfig, open_file: OpenFile) -> None:
        self._config = config
        self._open_file = open_file
        self._block_bytes = config.block_bytes
        self.slot_bytes = -(-config.block_bytes // PAGE_BYTES) * PAGE_BYTES
        self.num_slots = config.capacity_bytes // self.slot_bytes
        if not self.num_slots:
            raise ConfigError(f"{config.capacity_bytes} bytes hold no slot of {self.slot_bytes} bytes")
        self._max_piece_blocks = max(1, PIECE_BYTES // self.slot_bytes)
        self._checksums: dict[int, bytes] = {}  # slot -> of the block whose entry stands in the table
        self._sequence = itertools.count()
        self._bounce = threading.local()
        self._file: BlockFile | None = None
        self._table: SlotTable | None = None

    def open(self) -> list[FoundBlock]:
        folder = self._config.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return self._open_in(folder)
        except OSError as error:
            self.close()
            raise ConfigError(f"no disk store in {folder}: {error}") from error
        except ConfigError:
            self.close()
            raise

    def _open_in(self, folder: Path) -> list[FoundBlock]:
        table = SlotTable(folder / "table", block_bytes=self._block_bytes, slot_bytes=self.slot_bytes)
        self._table = table
        try:
            fcntl.flock(table.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process keeps its blocks in {folder}; give each its own") from None
        self._require_room(folder)
        self._file = self._open_file(folder / "blocks", self._config.is_direct)
        if self._config.is_direct and not self._file.is_direct:
            logger.info("%s: the file system has no direct I/O, the page cache is used", folder)
        entries = table.load(self.num_slots)
        self._file.truncate(self.num_slots * self.slot_bytes if entries else 0)
        if not entries:
            return []
        self._checksums = {entry.slot: entry.checksum for entry in entries}
        self._sequence = itertools.count(entries[-1].sequence + 1)
        return [
            FoundBlock(entry.slot, entry.key, entry.parent, entry.priority, entry.token_hash, entry.namespace)
            for entry in entries
        ]

    def _require_room(self, folder: Path) -> None:
        size_bytes = self.num_slots * self.slot_bytes
        disk = os.statvfs(folder)
        blocks = folder / "blocks"
        own_bytes = blocks.stat().st_blocks * 512 if blocks.exists() else 0
        room_bytes = disk.f_bavail * disk.f_frsize + own_bytes
        if size_bytes > room_bytes:
            raise ConfigError(
                f"a disk store of {size_bytes} bytes does not fit into {folder}: it has room for {room_bytes}"
            )

    def write(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        for piece in self._pieces(jobs):
            if should_stop():
                return
            try:
                self._write_piece(piece)
            except OSError as error:
                _fail(piece, _kind_of(error), str(error))

    def _write_piece(self, piece: Sequence[SlotJob]) -> None:
        assert self._file is not None
        assert self._table is not None
        first = piece[0].slot
        if any(self._checksums.pop(job.slot, None) is not None for job in piece):
            self._table.clear(first, len(piece))
        entries = [self._entry(job) for job in piece]
        self._file.write(first * self.slot_bytes, self._buffers(piece, has_data=True))
        self._table.write(entries)
        for job, entry in zip(piece, entries, strict=True):
            self._checksums[job.slot] = entry.checksum
            job.is_done = True

    def _entry(self, job: SlotJob) -> TableEntry:
        assert job.offer is not None
        parent = job.offer.parent if len(job.offer.parent or b"") <= MAX_KEY_BYTES else None
        return TableEntry(
            job.slot,
            next(self._sequence),
            job.key,
            block_checksum(job.key, job.memory),
            parent,
            job.offer.priority,
            job.offer.token_hash,
            job.offer.namespace,
        )

    def read(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        assert self._file is not None
        for piece in self._pieces(jobs):
            if should_stop():
                return
            buffers = self._buffers(piece, has_data=False)
            try:
                self._file.read(piece[0].slot * self.slot_bytes, buffers)
            except OSError as error:
                self._read_alone(piece, error)
                continue
            self._accept(piece, buffers)

    def _read_alone(self, piece: Sequence[SlotJob], error: OSError) -> None:
        """One bad sector costs one block: the others of the piece are read again, each for itself."""
        assert self._file is not None
        if len(piece) == 1:
            _fail(piece, _kind_of(error), str(error))
            return
        for job in piece:
            buffers = self._buffers([job], has_data=False)
            try:
                self._file.read(job.slot * self.slot_bytes, buffers)
            except OSError as own_error:
                _fail([job], _kind_of(own_error), str(own_error))
            else:
                self._accept([job], buffers)

    def _accept(self, piece: Sequence[SlotJob], buffers: Sequence[memoryview]) -> None:
        """Check what was read, and bring it to where it belongs when it came through a buffer of ours."""
        is_bounced = buffers[0] is not piece[0].memory
        for position, job in enumerate(piece):
            if is_bounced:
                start = position * self.slot_bytes
                data = buffers[0][start : start + self._block_bytes]
                np.copyto(np.frombuffer(job.memory, np.uint8), np.frombuffer(data, np.uint8))
            if block_checksum(job.key, job.memory) == self._checksums.get(job.slot):
                job.is_done = True
            else:
                self.clear([job.slot])
                _fail([job], KVStoreFailureKind.CORRUPT, f"slot {job.slot} is not what was written")

    def clear(self, slots: Sequence[int]) -> None:
        assert self._table is not None
        for slot in slots:
            if self._checksums.pop(slot, None) is not None:
                try:
                    self._table.clear(slot)
                except OSError as error:  # at worst a right block is found again after a restart
                    logger.warning("cannot clear slot %d: %s", slot, error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._table is not None:
            self._table.close()
            self._table = None

    def _pieces(self, jobs: Sequence[SlotJob]) -> Iterator[Sequence[SlotJob]]:
        """Runs of neighbouring slots, bounded."""
        start = 0
        for end in range(1, len(jobs) + 1):
            if (
                end == len(jobs)
                or jobs[end].slot != jobs[end - 1].slot + 1
                or end - start == self._max_piece_blocks
            ):
                yield jobs[start:end]
                start = end

    def _buffers(self, piece: Sequence[SlotJob], *, has_data: bool) -> list[memoryview]:
        """The jobs' own memory where the file can use it; else one buffer of this thread, filled if
        ``has_data``."""
        assert self._file is not None
        if self.slot_bytes == self._block_bytes and (
            not self._file.is_direct or all(address_of(job.memory) % PAGE_BYTES == 0 for job in piece)
        ):
            return [job.memory for job in piece]
        bounce: memoryview | None = getattr(self._bounce, "memory", None)
        if bounce is None:
            bounce = self._bounce.memory = private_memory(self._max_piece_blocks * self.slot_bytes)
        if has_data:
            for position, job in enumerate(piece):
                start = position * self.slot_bytes
                target = np.frombuffer(bounce[start : start + self._block_bytes], np.uint8)
                np.copyto(target, np.frombuffer(job.memory, np.uint8))
        return [bounce[: len(piece) * self.slot_bytes]]


def _kind_of(error: OSError) -> KVStoreFailureKind:
    return _KINDS.get(error.errno or 0, KVStoreFailureKind.IO)


def _fail(jobs: Sequence[SlotJob], kind: KVStoreFailureKind, detail: str) -> None:
    for job in jobs:
        job.failure, job.detail = kind, detail


class DiskStore(SlotStore):
    """As many blocks as fit into ``config.capacity_bytes`` on disk. ``open_file`` is for tests."""

    def __init__(self, config: DiskStoreConfig, *, open_file: OpenFile = open_os_file) -> None:
        medium = DiskMedium(config, open_file)
        super().__init__(
            StoreShape(
                name="disk",
                block_bytes=config.block_bytes,
                num_read_threads=config.num_read_threads,
                num_write_threads=config.num_write_threads,
                max_pending_write_bytes=config.max_pending_write_bytes,
            ),
            medium,
            eviction_policy(config.eviction, medium.num_slots),
        )
