"""One call's batch of blocks, moved in parts: while the bytes of one part move on a thread, without the
interpreter's lock, the books of the next are done on the loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import anyio

PART_BYTES = 8 << 20
"""Batches above this are cut into parts. To hand one to a thread and back costs 50 to 100 µs, to move it
about 500."""

PARTS_PER_THREAD = 2
"""One that moves, one that is ready to."""

PartWork = Callable[[int, int], Coroutine[None, None, None]]
"""Move the blocks ``start`` to ``end`` of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreShape:
    """``num_*_threads``: how many parts of batches move at once.
    ``max_pending_write_bytes``: offers beyond are refused."""

    name: str
    block_bytes: int
    num_read_threads: int = 1
    num_write_threads: int = 1
    max_pending_write_bytes: int = 256 << 20


@dataclass(slots=True)
class Stop:
    """Set on the loop, read by a thread."""

    is_set: bool = field(default=False)

    def set(self) -> None:
        self.is_set = True

    def __call__(self) -> bool:
        return self.is_set


@dataclass(slots=True)
class Batch:
    """One call's answers, and what it moved."""

    answers: list[bool]
    num_moved: int = 0
    is_whole: bool = True
    """Everything that was to be moved was."""


def blocks_per_part(num_blocks: int, block_bytes: int, num_threads: int, *, is_ordered: bool) -> int:
    """Small parts, so that the first begins soon and the last one's books are short. ``is_ordered``: as large
    as they may be with every thread at work, so that neighbours meet in one."""
    at_least = -(-num_blocks // (PARTS_PER_THREAD * num_threads)) if is_ordered else 1
    return max(1, PART_BYTES // block_bytes, at_least)


async def in_parts(num_blocks: int, part_blocks: int, num_threads: int, work: PartWork) -> None:
    """``work`` for all parts, a few at a time. A part is begun when one before it has ended, which is when
    the thread has just turned to the next: books that are done then do not keep the lock from it."""
    if num_blocks <= part_blocks:
        await work(0, num_blocks)
        return
    starts = iter(range(0, num_blocks, part_blocks))

    async def lane() -> None:
        for start in starts:
            await work(start, min(start + part_blocks, num_blocks))

    async with anyio.create_task_group() as tasks:
        for _ in range(PARTS_PER_THREAD * num_threads):
            tasks.start_soon(lane)
