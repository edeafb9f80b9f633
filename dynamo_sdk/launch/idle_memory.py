"""Give memory back to the system when a frontend has nothing to do.

After a burst of long prompts the C library keeps most of what was freed: 340 of 500 MiB after 64 prompts of
200,000 tokens at once. It cannot know that no more are coming; a process that has been idle for a while does.
Giving back at once, by a low ``MALLOC_MMAP_THRESHOLD_``, makes such prompts half as dear again (measured).
"""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Callable
from threading import Thread

LOOK_INTERVAL_S = 5.0
IDLE_SHARE = 0.02
"""Of a core, over one interval: less is idle."""
MIN_GROWTH_BYTES = 32 * 2**20
"""Less is not worth the look through the heap."""


class TrimDecider:
    """When to give back; told how things stand at each look."""

    def __init__(self) -> None:
        self._cpu_s = 0.0
        self._floor_bytes = 0

    def look(self, cpu_s: float, rss_bytes: int, *, interval_s: float) -> bool:
        """Whether to give back now. ``cpu_s``: what the process has used in all, ``interval_s``: since the
        last look. Say with ``trimmed`` how it went."""
        used_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        return used_s < IDLE_SHARE * interval_s and rss_bytes >= self._floor_bytes + MIN_GROWTH_BYTES

    def trimmed(self, rss_bytes: int) -> None:
        """``rss_bytes`` are left: what is in use, and no cause to look again."""
        self._floor_bytes = rss_bytes


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def heap_trimmer() -> Callable[[], object] | None:
    """Gives free heap memory back, without the interpreter lock; None where the C library cannot."""
    if not os.path.exists("/proc/self/statm"):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(ctypes.c_size_t(0))


def trim_when_idle() -> None:
    """Give back what the start has left, then watch this process on a thread, where that can be done."""
    if (trim := heap_trimmer()) is not None:
        trim()
        Thread(target=_watch, args=(trim,), name="idle-memory", daemon=True).start()


def _watch(trim: Callable[[], object]) -> None:
    decider, looked_s = TrimDecider(), time.monotonic()
    decider.trimmed(resident_bytes())
    while True:
        time.sleep(LOOK_INTERVAL_S)
        now_s = time.monotonic()
        if decider.look(time.process_time(), resident_bytes(), interval_s=now_s - looked_s):
            trim()
            decider.trimmed(resident_bytes())
        looked_s = now_s
