"""``ItemSource``: a stream whose items are taken by plain calls, for where a generator costs too much."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ItemSource(ABC, Generic[T]):
    """One answer under way. What nobody takes stays with the source, which may merge it.

    ``is_over``: the last item was taken.
    """

    __slots__ = ()

    is_over: bool

    @abstractmethod
    def listen(self, on_ready: Callable[[], None]) -> None:
        """Call ``on_ready`` on the event loop whenever there is something new; it must not raise or block,
        and may ``take`` and ``close`` at once. What is there already is not announced."""

    @abstractmethod
    def take(self) -> T | None:
        """What has come since the last call; None = nothing yet. Raises what ended the stream early."""

    @abstractmethod
    def close(self) -> None:
        """Stop; what the stream holds is free when this returns. Idempotent."""
