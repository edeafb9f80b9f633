"""The decision log of one frontend on disk: two files at most, the newer one is written to."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.runtime.clock import Clock, TimerHandle

logger = logging.getLogger(__name__)

FLUSH_S = 1.0
_BUFFER_BYTES = 64 * 1024


class DecisionWriter:
    """Writes ``<name>.log`` in ``folder``; when that has half of ``max_bytes`` it becomes ``<name>.log.1``,
    and the one before is gone. What was written reaches the disk ``FLUSH_S`` later at the latest: a frontend
    that is killed loses no more. A disk that fails ends the log, with one line, and nothing else. Raises
    ``ConfigError`` when the log cannot be begun."""

    def __init__(self, folder: str, name: str, max_bytes: int, clock: Clock) -> None:
        self._clock = clock
        self._flushing: TimerHandle | None = None
        self.path = Path(folder) / f"{name}.log"
        self._max_file_bytes = max(1, max_bytes // 2)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise ConfigError(f"decision_log: cannot write {self.path}: {error}") from error
        self._num_bytes = 0
        self._is_over = False

    def write(self, frame: bytes) -> None:
        """One frame, into the buffer. To be called on the event loop."""
        if self._is_over:
            return
        try:
            if self._num_bytes and self._num_bytes + len(frame) > self._max_file_bytes:
                self._rotate()
            self._file.write(frame)
            self._num_bytes += len(frame)
        except OSError as error:
            self._end(error)
            return
        if self._flushing is None:  # one timer a second, however many requests there are
            self._flushing = self._clock.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if self._is_over:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        self._is_over = True
        logger.warning("the decision log %s ends here: %s", self.path, error)

    def close(self) -> None:
        """Idempotent."""
        self._is_over = True
        if self._flushing is not None:
            self._flushing.cancel()
        try:
            self._file.close()
        except OSError as error:
            logger.warning("the decision log %s ends early: %s", self.path, error)

    def _rotate(self) -> None:
        self._file.close()
        os.replace(self.path, self.path.with_suffix(".log.1"))
        self._file = self.path.open("wb", buffering=_BUFFER_BYTES)
        self._num_bytes = 0
