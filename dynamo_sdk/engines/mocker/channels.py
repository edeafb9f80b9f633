"""``Channels``: what moves bytes between two memories, in virtual time."""

from __future__ import annotations

from heapq import heapify, heapreplace


class Channels:
    """``num_channels`` ways, each with one transfer at a time; who finds all of them taken waits, first come,
    first served. A transfer takes ``latency_s`` and its bytes at ``bytes_per_s``."""

    def __init__(self, num_channels: int, *, latency_s: float, bytes_per_s: float) -> None:
        if num_channels < 1 or latency_s < 0 or bytes_per_s <= 0:
            raise ValueError(f"{num_channels} channels, {latency_s} s, {bytes_per_s} bytes/s")
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._free_at_s = [0.0] * num_channels  # a heap
        heapify(self._free_at_s)
        self.busy_s = 0.0

    def start_s(self, now_s: float) -> float:
        """When a transfer that is asked for at ``now_s`` would begin."""
        return max(now_s, self._free_at_s[0])

    def send(self, num_bytes: int, now_s: float) -> float:
        """Begin a transfer at ``start_s(now_s)``; when it will be over."""
        duration_s = self._latency_s + num_bytes / self._bytes_per_s
        end_s = self.start_s(now_s) + duration_s
        heapreplace(self._free_at_s, end_s)
        self.busy_s += duration_s
        return end_s
