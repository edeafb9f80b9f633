"""``RamStore``: blocks in host memory, in one piece that is taken at start and never grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psutil

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import eviction_policy
from dynamo_sdk.transfer.host_copy import address_of, copy_bytes
from dynamo_sdk.transfer.host_pages import private_memory

from .batch import StoreShape
from .config import RamStoreConfig
from .medium import FoundBlock, SlotJob, SlotMedium
from .pinning import pin_for_cuda
from .slot_store import SlotStore

PIECE_BYTES = 8 << 20
"""The most that moves between two looks at cancellation (one block, if that is more)."""

INLINE_BYTES = 1 << 20
"""A batch up to this is copied on the event loop: about 0.2 ms, and a thread would cost as much."""


class RamMedium(SlotMedium):
    inline_bytes = INLINE_BYTES

    def __init__(self, num_slots: int, block_bytes: int) -> None:
        self.num_slots = num_slots
        self._block_bytes = block_bytes
        self._memory: memoryview | None = None
        self._address = 0
        self._unpin: Callable[[], None] | None = None

    def open(self) -> list[FoundBlock]:
        size_bytes = self.num_slots * self._block_bytes
        available_bytes = psutil.virtual_memory().available
        if size_bytes > available_bytes:
            raise ConfigError(
                f"a RAM store of {size_bytes} bytes does not fit: {available_bytes} bytes are available"
            )
        try:
            memory = private_memory(size_bytes, is_populated=True)
        except OSError as error:
            raise ConfigError(f"no {size_bytes} bytes of host memory for a RAM store: {error}") from error
        self._unpin = pin_for_cuda(memory)
        self._memory, self._address = memory, address_of(memory)
        return []

    def write(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        for run, slot_address, address in self._runs(jobs):
            if should_stop():
                return
            copy_bytes(slot_address, address, len(run) * self._block_bytes)
            _set_done(run)

    def read(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        for run, slot_address, address in self._runs(jobs):
            if should_stop():
                return
            copy_bytes(address, slot_address, len(run) * self._block_bytes)
            _set_done(run)

    def _runs(self, jobs: Sequence[SlotJob]) -> Iterator[tuple[Sequence[SlotJob], int, int]]:
        """Jobs that one copy does: slots and memories follow each other. With the addresses of both."""
        assert self._memory is not None
        base, size, max_blocks = self._address, self._block_bytes, max(1, PIECE_BYTES // self._block_bytes)
        start, first_slot, first_address = 0, -1, -1
        for position, job in enumerate(jobs):
            address, count = address_of(job.memory), position - start
            if (
                count == max_blocks
                or job.slot != first_slot + count
                or address != first_address + count * size
            ):
                if count:
                    yield jobs[start:position], base + first_slot * size, first_address
                start, first_slot, first_address = position, job.slot, address
        if jobs:
            yield jobs[start:], base + first_slot * size, first_address

    def close(self) -> None:
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self._memory = None


def _set_done(jobs: Sequence[SlotJob]) -> None:
    for job in jobs:
        job.is_done = True


class RamStore(SlotStore):
    """As many blocks as fit into ``config.capacity_bytes``. Nothing survives ``close``."""

    def __init__(self, config: RamStoreConfig) -> None:
        num_slots = config.capacity_bytes // config.block_bytes
        super().__init__(
            StoreShape(name="ram", block_bytes=config.block_bytes),
            RamMedium(num_slots, config.block_bytes),
            eviction_policy(config.eviction, num_slots),
        )
