"""``LegGauges``: how busy an engine is, from our own count of its legs; for engines that wrap others."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Generic, TypeVar

from anyio.lowlevel import checkpoint

from dynamo_sdk.types import LoadSnapshot

NameT = TypeVar("NameT", bound=Hashable)


class LegGauges(ABC, Generic[NameT]):
    """A leg waits until it has a token, and runs until it leaves. ``num_blocks``: of all ranks together."""

    def __init__(self) -> None:
        self.num_blocks = 0
        self._waiting: dict[NameT, int] = {}  # their tokens
        self._running: set[NameT] = set()
        self._idle = asyncio.Event()

    @abstractmethod
    def num_free_blocks(self, now_s: float) -> int:
        """Of ``num_blocks``, by what the engine says of its KV; ``now_s`` by the monotonic clock."""

    @property
    def names(self) -> list[NameT]:
        return [*self._waiting, *self._running]

    @property
    def num_active(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def num_waiting_tokens(self) -> int:
        return sum(self._waiting.values())

    def enter(self, name: NameT, *, num_tokens: int) -> None:
        """``num_tokens`` are to be computed before the first new one."""
        self._waiting[name] = num_tokens
        self._idle.clear()

    def saw_token(self, name: NameT) -> None:
        if self._waiting.pop(name, None) is not None:
            self._running.add(name)

    def leave(self, name: NameT) -> None:
        """Idempotent."""
        self._waiting.pop(name, None)
        self._running.discard(name)
        if not self.num_active:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no leg is here."""
        while self.num_active:
            await self._idle.wait()
        await checkpoint()

    def snapshot(self, now_s: float) -> LoadSnapshot:
        return LoadSnapshot(
            at_s=now_s,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_tokens=self.num_waiting_tokens,
            num_free_blocks=self.num_free_blocks(now_s),
            num_blocks=self.num_blocks,
        )
