"""``RamStore``: blocks in host memory, in one piece that is taken at start and never grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import psutil

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.kv import eviction_policy

from .arena import page_aligned, pin_for_cuda
from .config import RamStoreConfig
from .medium import FoundBlock, SlotJob, SlotMedium
from .slot_store import SlotStore, StoreShape

NUM_THREADS = 2
"""One core does not reach the memory's bandwidth, more take too much from the engine."""

INLINE_BYTES = 1 << 20
"""A batch up to this is copied on the event loop: about 0.2 ms, and a thread would cost as much."""


class RamMedium(SlotMedium):
    inline_bytes = INLINE_BYTES

    def __init__(self, num_slots: int, block_bytes: int) -> None:
        self.num_slots = num_slots
        self._block_bytes = block_bytes
        self._slots: npt.NDArray[np.uint8] | None = None
        self._unpin: Callable[[], None] | None = None

    def open(self) -> list[FoundBlock]:
        size_bytes = self.num_slots * self._block_bytes
        available_bytes = psutil.virtual_memory().available
        if size_bytes > available_bytes:
            raise ConfigError(
                f"a RAM store of {size_bytes} bytes does not fit: {available_bytes} bytes are available"
            )
        try:
            memory = page_aligned(size_bytes, is_populated=True)
        except OSError as error:
            raise ConfigError(f"no {size_bytes} bytes of host memory for a RAM store: {error}") from error
        self._unpin = pin_for_cuda(memory)
        self._slots = np.frombuffer(memory, dtype=np.uint8).reshape(self.num_slots, self._block_bytes)
        return []

    def write(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        slots = self._slots
        assert slots is not None
        for job in jobs:
            if should_stop():
                return
            # numpy copies without the GIL; assigning to a memoryview would keep it
            slots[job.slot] = np.frombuffer(job.memory, np.uint8)
            job.is_done = True

    def read(self, jobs: Sequence[SlotJob], should_stop: Callable[[], bool]) -> None:
        slots = self._slots
        assert slots is not None
        for job in jobs:
            if should_stop():
                return
            np.frombuffer(job.memory, np.uint8)[:] = slots[job.slot]
            job.is_done = True

    def close(self) -> None:
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self._slots = None


class RamStore(SlotStore):
    """As many blocks as fit into ``config.capacity_bytes``. Nothing survives ``close``."""

    def __init__(self, config: RamStoreConfig) -> None:
        num_slots = config.capacity_bytes // config.block_bytes
        super().__init__(
            StoreShape(
                name="ram",
                block_bytes=config.block_bytes,
                num_read_threads=NUM_THREADS,
                num_write_threads=NUM_THREADS,
            ),
            RamMedium(num_slots, config.block_bytes),
            eviction_policy(config.eviction, num_slots),
        )
