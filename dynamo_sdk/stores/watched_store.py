"""``WatchedStore``: what every store of ours does beside keeping blocks. It checks what it is handed, counts,
tells its listener and the log, and lets ``close`` wait for what is under way."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStore,
    KVStoreFailure,
    KVStoreFailureKind,
    KVStoreListener,
    KVStoreStatistics,
)

from .failures import LOG_EVERY_S, REST_S, FailureLog, RestAfterFailures
from .medium import MAX_KEY_BYTES

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Since the start; see ``KVStoreStatistics``."""

    num_lookups: int = 0
    num_hits: int = 0
    num_offers: int = 0
    num_kept: int = 0
    num_evicted: int = 0
    num_failures: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


class WatchedStore(KVStore):
    """A store of blocks of ``block_bytes`` that moves them in runs. ``name``: in the log."""

    def __init__(self, name: str, block_bytes: int, monotonic_s: Callable[[], float]) -> None:
        self._name = name
        self._block_bytes = block_bytes
        self._monotonic_s = monotonic_s
        self._listener = KVStoreListener()
        self._failure_log = FailureLog(logger, f"{name} store")
        self._said_rest_at_s: dict[str, float] = {}
        self._counts = Counts()
        self._num_pending = 0
        self._idle = anyio.Event()

    def listen(self, listener: KVStoreListener) -> None:
        self._listener = listener

    # -- one block is a run of one

    @abstractmethod
    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]: ...

    @abstractmethod
    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]: ...

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        return (await self.put_many([BlockOffer(key, block)]))[0]

    async def get(self, key: CacheKey) -> bytes | None:
        block = bytearray(self._block_bytes)
        is_found = (await self.get_into([key], [memoryview(block)]))[0]
        return bytes(block) if is_found else None

    # -- what it is handed

    def _note_offers(self, offers: Sequence[BlockOffer]) -> None:
        if any(len(offer.key) > MAX_KEY_BYTES for offer in offers):
            raise ValueError(f"a key has {MAX_KEY_BYTES} bytes at most")
        self._counts.num_offers += len(offers)

    def _note_lookups(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[memoryview]:
        """``into`` as bytes."""
        if len(keys) != len(into):
            raise ValueError(f"{len(keys)} keys for {len(into)} buffers")
        buffers = [as_bytes(buffer) for buffer in into]
        block_bytes = self._block_bytes
        for buffer in buffers:
            if len(buffer) != block_bytes or buffer.readonly:
                raise ValueError(
                    f"a buffer of {len(buffer)} bytes{' that cannot be written' if buffer.readonly else ''}; "
                    f"a block is {block_bytes} bytes"
                )
        self._counts.num_lookups += len(keys)
        return buffers

    # -- what became of it

    def _note_moved(self, num_blocks: int, begin_s: float, *, is_load: bool, is_whole: bool) -> None:
        """A batch ended. One of which a part failed (not ``is_whole``) says nothing about speed."""
        num_bytes = num_blocks * self._block_bytes
        if is_load:
            self._counts.read_bytes += num_bytes
        else:
            self._counts.written_bytes += num_bytes
        if num_blocks and is_whole:
            self._listener.moved(num_bytes, self._monotonic_s() - begin_s, is_load=is_load)

    def _fail(self, kind: KVStoreFailureKind, message: str, num_blocks: int = 1) -> None:
        self._counts.num_failures += num_blocks
        failure = KVStoreFailure(kind=kind, message=message, num_blocks=num_blocks)
        self._failure_log.note(failure, self._monotonic_s())
        self._listener.failed(failure)

    def _note_error(self, rest: RestAfterFailures, what: str = "it") -> None:
        """``what``, all of the store or a part of it, gave an error again."""
        now_s = self._monotonic_s()
        if rest.failed(now_s) and now_s >= self._said_rest_at_s.get(what, -LOG_EVERY_S) + LOG_EVERY_S:
            self._said_rest_at_s[what] = now_s
            logger.warning("%s store: %s rests for %.0f s after errors in a row", self._name, what, REST_S)

    def _statistics(
        self, *, num_blocks: int = 0, used_bytes: int = 0, capacity_bytes: int | None = None
    ) -> KVStoreStatistics:
        counts = self._counts
        return KVStoreStatistics(
            num_blocks=num_blocks,
            used_bytes=used_bytes,
            capacity_bytes=capacity_bytes,
            num_lookups=counts.num_lookups,
            num_hits=counts.num_hits,
            num_offers=counts.num_offers,
            num_kept=counts.num_kept,
            num_evicted=counts.num_evicted,
            num_failures=counts.num_failures,
            read_bytes=counts.read_bytes,
            written_bytes=counts.written_bytes,
            num_pending=self._num_pending,
        )

    # -- what is under way

    @contextmanager
    def _pending(self) -> Iterator[None]:
        """``close`` waits for the end."""
        self._num_pending += 1
        try:
            yield
        finally:
            self._num_pending -= 1
            if not self._num_pending:
                self._idle.set()

    async def _wait_idle(self) -> None:
        """Nothing is under way; cannot be cancelled."""
        with anyio.CancelScope(shield=True):
            while self._num_pending:
                if self._idle.is_set():
                    self._idle = anyio.Event()
                await self._idle.wait()


def as_bytes(data: bytes | bytearray | memoryview) -> memoryview:
    memory = data if isinstance(data, memoryview) else memoryview(data)
    return memory if memory.format == "B" and memory.ndim == 1 else memory.cast("B")
