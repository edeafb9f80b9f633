"""``S3Store``: blocks as objects in a bucket that all workers may share.

::

    prefix / v1 / 3f / 3f9a...     one object per block, named by its key; framed_block.py says what is in it

What others have put is found too: ``contains`` asks the bucket, remembers the answers for a while
(``presence.py``), and ``count_prefix`` searches with a few questions at once. A block that is there is not
uploaded again. Nothing is evicted here; the bucket's lifecycle rules make room.

A server that is down, slow, overloaded or wrong is a miss. After three errors in a row the store does not ask
it for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStoreFailureKind,
    KVStoreStatistics,
)
from dynamo_sdk.transfer.threads import run_to_end

from .config import S3StoreConfig
from .failures import RestAfterFailures
from .framed_block import HEAD_BYTES, frame_block, unframe_block
from .lookups import Lookups
from .object_client import ObjectClient, ObjectError
from .presence import PrefixSearch, PresenceCache
from .watched_store import WatchedStore, as_bytes

logger = logging.getLogger(__name__)

INLINE_BYTES = 256 << 10
"""Blocks up to this are checked and copied on the event loop: about 0.1 ms."""

LOOKUP_S = 1.0
"""A server that takes longer to say whether it has something is not worth waiting for."""

T = TypeVar("T")


class S3Store(WatchedStore):
    """``num_blocks`` of its statistics are those that it knows of; it has no capacity of its own."""

    def __init__(self, config: S3StoreConfig, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__("s3", config.block_bytes, monotonic_s)
        self._config = config
        self._presence = PresenceCache(
            max_keys=config.max_known_keys, present_s=config.present_s, absent_s=config.absent_s
        )
        self._read_rest = RestAfterFailures()
        self._write_rest = RestAfterFailures()
        self._reading = anyio.Semaphore(config.num_concurrent)
        self._writing = anyio.Semaphore(config.num_concurrent)
        self._lookups = Lookups(self._look_up, 4 * config.num_concurrent)
        self._pending_write_bytes = 0
        self._client: ObjectClient | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """A server that does not answer now may do so later: only a line in the log."""
        client = ObjectClient(self._config)
        try:
            with anyio.fail_after(self._config.timeout_s):
                await client.check()
        except (ObjectError, TimeoutError) as error:
            logger.warning("s3 store: the server does not answer yet: %s", error or "no answer in time")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="kv-s3")
        self._client = client

    # -- blocks

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        await checkpoint()
        self._note_offers(offers)
        answers = [False] * len(offers)
        if self._client is None:
            return answers
        block_bytes, num_refused, begin_s = self._block_bytes, 0, self._monotonic_s()
        accepted: list[tuple[int, CacheKey, memoryview]] = []
        for position, offer in enumerate(offers):
            memory = as_bytes(offer.data)
            if len(memory) != block_bytes:
                continue
            if self._presence.look_up(offer.key, begin_s):
                answers[position] = True
            elif self._pending_write_bytes + block_bytes > self._config.max_pending_write_bytes:
                num_refused += 1
            else:
                self._pending_write_bytes += block_bytes
                accepted.append((position, offer.key, memory))
        if num_refused:
            self._fail(KVStoreFailureKind.BUSY, "too many writes are under way", num_refused)
        num_uploaded = 0

        async def write(job: tuple[int, CacheKey, memoryview]) -> None:
            nonlocal num_uploaded
            position, key, memory = job
            if not await self._knows(key):
                framed = await self._off_loop(lambda: frame_block(key, memory))
                await self._ask(lambda client: client.put(_name(key), framed))
                num_uploaded += 1
                self._note(key, is_there=True)
            answers[position] = True

        try:
            await self._for_each(accepted, write, self._writing, self._write_rest)
        finally:
            self._pending_write_bytes -= len(accepted) * block_bytes
        self._counts.num_kept += sum(answers)
        self._note_moved(num_uploaded, begin_s, is_load=False, is_whole=num_uploaded == len(accepted))
        return answers

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        await checkpoint()
        buffers = self._note_lookups(keys, into)
        answers = [False] * len(keys)
        if self._client is None:
            return answers
        begin_s = self._monotonic_s()
        wanted = [
            position for position, key in enumerate(keys) if self._presence.look_up(key, begin_s) is not False
        ]

        async def read(position: int) -> None:
            key, memory = keys[position], buffers[position]
            framed = await self._ask(lambda client: client.get(_name(key), HEAD_BYTES + self._block_bytes))
            if framed is None:
                self._note(key, is_there=False)
                return
            problem = await self._off_loop(lambda: unframe_block(key, framed, memory))
            if problem is None:
                self._note(key, is_there=True)
                answers[position] = True
                return
            self._note(key, is_there=False)
            self._fail(KVStoreFailureKind.CORRUPT, f"object {_name(key)}: {problem}")
            await self._ask(lambda client: client.delete([_name(key)]))  # whoever computes it puts it again

        await self._for_each(wanted, read, self._reading, self._read_rest)
        num_found = sum(answers)
        self._counts.num_hits += num_found
        self._note_moved(num_found, begin_s, is_load=True, is_whole=num_found == len(wanted))
        return answers

    # -- presence

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        await checkpoint()
        if not self._is_readable():
            return [False] * len(keys)
        now_s = self._monotonic_s()
        unknown = [key for key in dict.fromkeys(keys) if self._presence.look_up(key, now_s) is None]
        for start in range(0, len(unknown), self._config.num_concurrent):
            await self._lookups.wait(unknown[start : start + self._config.num_concurrent])
        now_s = self._monotonic_s()
        return [bool(self._presence.look_up(key, now_s)) for key in keys]

    async def count_prefix(self, keys: Sequence[CacheKey]) -> int:
        await checkpoint()
        if not self._is_readable():
            return 0
        now_s = self._monotonic_s()
        search = PrefixSearch(
            keys, lambda key: self._presence.look_up(key, now_s), self._config.num_concurrent
        )
        while questions := search.questions():
            await self._lookups.wait([keys[position] for position in questions])
            now_s = self._monotonic_s()
            for position in questions:  # one that could not be asked is one that cannot be loaded
                search.answered(position, bool(self._presence.look_up(keys[position], now_s)))
        return search.count

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await checkpoint()
        if self._client is None or not keys:
            return
        for key in keys:
            self._note(key, is_there=False)

        async def remove(some: Sequence[CacheKey]) -> None:
            await self._ask(lambda client: client.delete([_name(key) for key in some]))

        await self._for_each([keys], remove, self._writing, self._write_rest)

    def statistics(self) -> KVStoreStatistics:
        num_blocks = self._presence.num_present
        return self._statistics(num_blocks=num_blocks, used_bytes=num_blocks * self._block_bytes)

    async def close(self) -> None:
        self._client = None
        await self._lookups.close()
        await self._wait_idle()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    # -- inside

    async def _for_each(
        self,
        items: Sequence[T],
        work: Callable[[T], Awaitable[None]],
        places: anyio.Semaphore,
        rest: RestAfterFailures,
    ) -> None:
        """``work`` for all items, some at once; the rest of them are left alone when errors come in a row."""
        waiting = iter(items)

        async def run() -> None:
            for item in waiting:
                async with places:
                    if self._client is None or rest.is_resting(self._monotonic_s()):
                        return
                    try:
                        with anyio.fail_after(self._config.timeout_s):
                            await work(item)
                    except (ObjectError, TimeoutError) as error:
                        self._fail(KVStoreFailureKind.IO, str(error) or "no answer in time")
                        self._note_error(rest)
                    else:
                        rest.worked()

        with self._pending():
            if len(items) == 1:
                await run()
                return
            async with anyio.create_task_group() as tasks:
                for _ in range(min(len(items), self._config.num_concurrent)):
                    tasks.start_soon(run)

    async def _look_up(self, key: CacheKey) -> None:
        """The answer lies in ``_presence`` then; none where the server does not answer."""

        async def ask(key: CacheKey) -> None:
            with anyio.fail_after(LOOKUP_S):
                await self._knows(key)

        await self._for_each([key], ask, self._reading, self._read_rest)

    async def _knows(self, key: CacheKey) -> bool:
        """Whether the key is there, asked if need be."""
        is_there = self._presence.look_up(key, self._monotonic_s())
        if is_there is None:
            is_there = await self._ask(lambda client: client.has(_name(key)))
            self._note(key, is_there=is_there)
        return is_there

    async def _ask(self, question: Callable[[ObjectClient], Awaitable[T]]) -> T:
        if self._client is None:
            raise ObjectError("the store is closed")
        return await question(self._client)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        """On a thread that is waited for, unless it is quick."""
        if self._block_bytes <= INLINE_BYTES:
            return work()
        assert self._threads is not None, "nothing is under way when they are shut down"
        return await run_to_end(self._threads, work, lambda: None)

    def _note(self, key: CacheKey, *, is_there: bool) -> None:
        now_s = self._monotonic_s()
        if not is_there:
            if self._presence.missed(key, now_s):
                self._listener.removed([key])
            return
        is_new, dropped = self._presence.found(key, now_s)
        if is_new:
            self._listener.stored([key])
        if dropped is not None:
            self._listener.removed([dropped])

    def _is_readable(self) -> bool:
        return self._client is not None and not self._read_rest.is_resting(self._monotonic_s())


def _name(key: CacheKey) -> str:
    """Spread over 256 folders; of this version of ``framed_block``."""
    text = key.hex()
    return f"v1/{text[:2]}/{text}"
