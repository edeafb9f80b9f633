"""A medium that keeps failing is left alone for a while, and does not fill the log."""

from __future__ import annotations

import logging

from dynamo_sdk.interfaces import KVStoreFailure, KVStoreFailureKind

FAILURES_BEFORE_REST = 3
REST_S = 10.0
NO_ROOM_S = 60.0
"""For so long slots that a full disk had no room for are not tried again; others are overwritten."""
LOG_EVERY_S = 60.0


class RestAfterFailures:
    """After three failing batches in a row the store rests; then one more failure is enough to rest again."""

    def __init__(self) -> None:
        self._num_in_row = 0
        self._until_s = float("-inf")

    def failed(self, now_s: float) -> bool:
        """Whether a rest begins."""
        self._num_in_row += 1
        if self._num_in_row < FAILURES_BEFORE_REST or self.is_resting(now_s):
            return False
        self._until_s = now_s + REST_S
        return True

    def worked(self) -> None:
        self._num_in_row = 0

    def is_resting(self, now_s: float) -> bool:
        return now_s < self._until_s


class FailureLog:
    """One line per kind of failure and minute; it says how many blocks the earlier, silent ones had."""

    def __init__(self, logger: logging.Logger, name: str) -> None:
        self._logger = logger
        self._name = name
        self._logged_at_s: dict[KVStoreFailureKind, float] = {}
        self._num_silent: dict[KVStoreFailureKind, int] = {}

    def note(self, failure: KVStoreFailure, now_s: float) -> None:
        num_blocks = failure.num_blocks + self._num_silent.get(failure.kind, 0)
        logged_at_s = self._logged_at_s.get(failure.kind)
        if logged_at_s is not None and now_s - logged_at_s < LOG_EVERY_S:
            self._num_silent[failure.kind] = num_blocks
            return
        self._logged_at_s[failure.kind] = now_s
        self._num_silent[failure.kind] = 0
        self._logger.warning(
            "%s: %d blocks were not kept or found (%s): %s",
            self._name,
            num_blocks,
            failure.kind,
            failure.message,
        )
