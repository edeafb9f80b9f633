"""``Feed``: what an engine tells whoever listens, such as KV events or a record of each step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Feed(Generic[T]):
    """Calls its listeners at once, in the order in which they came. One that raises harms nobody else."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[T], None]] = []

    @property
    def has_listeners(self) -> bool:
        return bool(self._listeners)

    def subscribe(self, listener: Callable[[T], None]) -> None:
        self._listeners.append(listener)

    def publish(self, item: T) -> None:
        for listener in self._listeners:
            try:
                listener(item)
            except Exception:
                _log.exception("a listener of the engine failed")
