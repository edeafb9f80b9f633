"""``StallWatch``: ends the connection of a client that leaves unread what was written to it."""

from __future__ import annotations

import asyncio

from .lazy_timer import LazyTimer

MIN_PROGRESS_BYTES = 4096
"""What a client has to take in the time it is given, so that reading byte by byte does not last for ever."""
_CHECKS_PER_TIMEOUT = 4


class StallWatch:
    """While it runs, at least ``MIN_PROGRESS_BYTES`` must leave the transport's buffer every ``timeout_s``;
    otherwise the transport is aborted, at most a quarter of that later. ``close`` it."""

    __slots__ = (
        "_is_running",
        "_since_s",
        "_taken_bytes",
        "_timeout_s",
        "_timer",
        "_transport",
        "num_written_bytes",
    )

    def __init__(self, timeout_s: float) -> None:
        self.num_written_bytes = 0
        """All that was ever written. Whoever writes adds to it."""
        self._timeout_s = timeout_s
        self._timer = LazyTimer()
        self._is_running = False
        self._since_s = 0.0
        self._taken_bytes = 0
        self._transport: asyncio.Transport | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """From now on. Where it runs already, it goes on."""
        if self._is_running:
            return
        self._is_running = True
        self._transport = transport
        self._note_progress(self._num_taken_bytes(transport))
        self._timer.start(self._timeout_s / _CHECKS_PER_TIMEOUT, self._check)

    def stop(self) -> None:
        """Idempotent, as ``close`` is."""
        self._is_running = False
        self._timer.stop()

    def close(self) -> None:
        self.stop()
        self._timer.close()

    def _check(self) -> None:
        transport = self._transport
        assert transport is not None, "it was never started"
        num_taken = self._num_taken_bytes(transport)
        if num_taken - self._taken_bytes >= MIN_PROGRESS_BYTES:
            self._note_progress(num_taken)
        elif asyncio.get_running_loop().time() - self._since_s >= self._timeout_s:
            self.stop()
            transport.abort()
            return
        self._timer.start(self._timeout_s / _CHECKS_PER_TIMEOUT, self._check)

    def _note_progress(self, num_taken_bytes: int) -> None:
        self._taken_bytes, self._since_s = num_taken_bytes, asyncio.get_running_loop().time()

    def _num_taken_bytes(self, transport: asyncio.Transport) -> int:
        return self.num_written_bytes - transport.get_write_buffer_size()
