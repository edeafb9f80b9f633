"""The decision log of one frontend on disk: two files at most, the newer one is written to."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dynamo_sdk.errors import ConfigError

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 64 * 1024


class DecisionWriter:
    """Writes ``<name>.log`` in ``folder``; when that has half of ``max_bytes`` it becomes ``<name>.log.1``,
    and the one before is gone. A disk that fails ends the log, with one line, and nothing else. Raises
    ``ConfigError`` when the log cannot be begun."""

    def __init__(self, folder: str, name: str, max_bytes: int) -> None:
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
        """One frame, into the buffer; what is in there reaches the disk when it is full and at the end."""
        if self._is_over:
            return
        try:
            if self._num_bytes and self._num_bytes + len(frame) > self._max_file_bytes:
                self._rotate()
            self._file.write(frame)
            self._num_bytes += len(frame)
        except OSError as error:
            self._is_over = True
            logger.warning("the decision log %s ends here: %s", self.path, error)

    def close(self) -> None:
        """Idempotent."""
        self._is_over = True
        try:
            self._file.close()
        except OSError as error:
            logger.warning("the decision log %s ends early: %s", self.path, error)

    def _rotate(self) -> None:
        self._file.close()
        os.replace(self.path, self.path.with_suffix(".log.1"))
        self._file = self.path.open("wb", buffering=_BUFFER_BYTES)
        self._num_bytes = 0
