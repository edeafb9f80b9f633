"""The table of a disk store: which slot holds which block, with the checksum of its bytes.

One file: a page with the shape of the store, then an entry per slot. An entry is written after its block
and cleared before the slot is written again. A crash may still leave an entry and a block that do
not belong together (a power cut orders nothing): the block's checksum, which covers its key, tells. An entry
that is damaged itself fails its own check and counts as empty.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from xxhash import xxh3_64_intdigest

from dynamo_sdk.interfaces import CacheKey

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
_MAGIC = b"dynamo-sdk kv 3\n"
_HEADER = Struct("<16sQQ")
_ENTRY = Struct("<QQ16sBBiQQ32s32s")
"""Check, sequence, checksum, lengths of key and parent, priority, hash of the tokens, namespace, key and
parent (``MAX_KEY_BYTES`` each)."""
ENTRY_BYTES = _ENTRY.size
_CHECK_BYTES = 8
_PRIORITY_LIMIT = (1 << 31) - 1
_EMPTY = bytes(ENTRY_BYTES)


@dataclass(frozen=True, slots=True)
class TableEntry:
    """``sequence`` grows with every write of the store."""

    slot: int
    sequence: int
    key: CacheKey
    checksum: bytes
    parent: CacheKey | None = None
    priority: int = 0
    token_hash: int = 0
    namespace: int = 0


class SlotTable:
    """Thread-safe for different slots. ``block_bytes`` and ``slot_bytes`` are the shape that must match."""

    def __init__(self, path: Path, *, block_bytes: int, slot_bytes: int) -> None:
        self._folder = path.parent
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._header = _HEADER.pack(_MAGIC, block_bytes, slot_bytes)

    @property
    def fd(self) -> int:
        return self._fd

    def load(self, num_slots: int) -> list[TableEntry] | None:
        """The sound entries of the first ``num_slots`` slots, oldest first, one per key. None: the file is
        not of this shape, or new; then it is empty from now on. Raises ``OSError``."""
        header = os.pread(self._fd, len(self._header), 0)
        if header != self._header:
            if header:
                logger.warning("%s: the blocks of another size that were kept here are dropped", self._folder)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._header, 0)
            return None
        os.ftruncate(self._fd, min(os.fstat(self._fd).st_size, HEADER_BYTES + num_slots * ENTRY_BYTES))
        newest: dict[CacheKey, TableEntry] = {}
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(HEADER_BYTES)
            for slot in range(num_slots):
                packed = file.read(ENTRY_BYTES)
                if len(packed) < ENTRY_BYTES:
                    break
                entry = _unpack(slot, packed)
                if entry is not None and (
                    entry.key not in newest or newest[entry.key].sequence < entry.sequence
                ):
                    newest[entry.key] = entry
        return sorted(newest.values(), key=lambda entry: entry.sequence)

    def write(self, entries: Sequence[TableEntry]) -> None:
        """``entries`` of neighbouring slots, ascending. Raises ``OSError``."""
        self._write(entries[0].slot, b"".join([_pack(entry) for entry in entries]))

    def clear(self, first_slot: int, num_slots: int = 1) -> None:
        """Raises ``OSError``."""
        self._write(first_slot, _EMPTY * num_slots)

    def _write(self, first_slot: int, packed: bytes) -> None:
        offset = HEADER_BYTES + first_slot * ENTRY_BYTES
        while packed:
            num_bytes = os.pwrite(self._fd, packed, offset)
            offset, packed = offset + num_bytes, packed[num_bytes:]

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _pack(entry: TableEntry) -> bytes:
    parent = entry.parent or b""
    priority = max(-_PRIORITY_LIMIT, min(entry.priority, _PRIORITY_LIMIT))
    packed = _ENTRY.pack(
        0,
        entry.sequence,
        entry.checksum,
        len(entry.key),
        len(parent),
        priority,
        entry.token_hash,
        entry.namespace,
        entry.key,
        parent,
    )
    return _check(entry.slot, packed).to_bytes(_CHECK_BYTES, "little") + packed[_CHECK_BYTES:]


def _unpack(slot: int, packed: bytes) -> TableEntry | None:
    check, sequence, checksum, key_bytes, parent_bytes, priority, token_hash, namespace, key, parent = (
        _ENTRY.unpack(packed)
    )
    if not key_bytes or check != _check(slot, packed):
        return None
    return TableEntry(
        slot,
        sequence,
        CacheKey(key[:key_bytes]),
        checksum,
        CacheKey(parent[:parent_bytes]) or None,
        priority,
        token_hash,
        namespace,
    )


def _check(slot: int, packed: bytes) -> int:
    return xxh3_64_intdigest(packed[_CHECK_BYTES:], slot)
