"""One call's batch of blocks, moved in parts: while the bytes of one part move on a thread, without the
interpreter's lock, the books of the next are done on the loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import anyio

PART_BYTES = 8 << 20
"""Batches above this are cut into parts. To hand one to a thread and back costs 50 to 100 µs, to move it
about 500."""

FIRST_PART_BYTES = 2 << 20
"""The books of the first part are done while nothing moves: about 2 µs a block."""

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


def parts_of(
    num_blocks: int, block_bytes: int, num_threads: int, *, is_ordered: bool
) -> list[tuple[int, int]]:
    """``(start, end)`` of each part. The first ones are small, so that moving begins soon. ``is_ordered``: as
    large as they may be with every thread at work, so that neighbours meet in one."""
    whole = max(1, PART_BYTES // block_bytes)
    if is_ordered:
        whole = max(whole, -(-num_blocks // (PARTS_PER_THREAD * num_threads)))
    size = whole if is_ordered or num_blocks <= whole else max(1, FIRST_PART_BYTES // block_bytes)
    parts, start = [], 0
    while start < num_blocks:
        end = min(start + size, num_blocks)
        parts.append((start, end))
        start, size = end, min(2 * size, whole)
    return parts


async def in_parts(parts: Sequence[tuple[int, int]], num_threads: int, work: PartWork) -> None:
    """``work`` for all parts, a few at a time. A part is begun when one before it has ended, which is when
    the thread has just turned to the next: books that are done then do not keep the lock from it."""
    if len(parts) == 1:
        await work(*parts[0])
        return
    waiting = iter(parts)

    async def lane() -> None:
        for start, end in waiting:
            await work(start, end)

    async with anyio.create_task_group() as tasks:
        for _ in range(PARTS_PER_THREAD * num_threads):
            tasks.start_soon(lane)
