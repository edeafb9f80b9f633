"""``PeerStore``: the tier ``shared``. Blocks of other workers, read from their tiers when a request says so.

::

    frontend        its index knows who holds what; it names one worker in GenerateRequest.kv_source
    expect          these keys are at that worker: believed for a while, asked of nobody
    count_prefix    from what is expected; costs nothing where no request named anybody
    get_into        one question to each worker (peer_exchange.py), answered by its PeerServer

It keeps nothing. What was read lies on the device then and is offered to the tiers that keep, so a hot prefix
spreads to the workers that are asked for it, as far as their capacity goes.

A worker that is gone, late or full is a miss: what was expected of it is forgotten, and after three
failures in a row it is not asked for a while.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import DynamoError, Overloaded
from dynamo_sdk.interfaces import (
    BlockOffer,
    CacheKey,
    KVStoreFailureKind,
    KVStoreStatistics,
    ReadsPeers,
)
from dynamo_sdk.transfer.region import Mappings
from dynamo_sdk.transfer.threads import run_to_end
from dynamo_sdk.types import KVSource

from .config import PeerStoreConfig
from .expectations import Expectations
from .failures import RestAfterFailures
from .peer_exchange import PeerExchange
from .peer_wire import MAX_KEYS
from .watched_store import WatchedStore

MAX_PEERS = 256
"""Connections and failures of so many are remembered."""

FORGET_S = 60.0
"""What was not asked for so long may be gone; its memory would stay for as long as we have it mapped."""

MAX_REGIONS = 8
"""Of one peer's memory that stay mapped: it has one for each reader that it serves at once."""


@dataclass(slots=True)
class _Peer:
    """``mappings``: of its memory; None when that is elsewhere, or turned out not to be mappable."""

    mappings: Mappings | None
    asked_at_s: float = 0.0
    idle: list[socket.socket] = field(default_factory=list)
    rest: RestAfterFailures = field(default_factory=RestAfterFailures)

    def close(self) -> None:
        """Let go of its sockets and its memory."""
        while self.idle:
            self.idle.pop().close()
        if self.mappings is not None:
            self.mappings.clear()


class PeerStore(WatchedStore, ReadsPeers):
    def __init__(self, config: PeerStoreConfig, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__("shared", config.block_bytes, monotonic_s)
        self._config = config
        self._secret: bytes | None = None
        self._expected = Expectations(config.max_expected_keys, config.expect_s)
        self._peers: dict[str, _Peer] = {}  # by address, the one that was asked last at the end
        self._places = anyio.Semaphore(config.num_concurrent)
        self._threads: ThreadPoolExecutor | None = None

    def trust(self, secret: bytes | None) -> None:
        self._secret = secret

    def expect(self, keys: Sequence[CacheKey], source: KVSource) -> None:
        self._expected.add(keys, source.address, self._monotonic_s())

    async def start(self) -> None:
        self._threads = ThreadPoolExecutor(self._config.num_concurrent, thread_name_prefix="kv-peer-read")

    async def put_many(self, offers: Sequence[BlockOffer]) -> list[bool]:
        """None: other workers' memory is theirs to fill."""
        await checkpoint()
        self._note_offers(offers)
        return [False] * len(offers)

    async def get_into(self, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        await checkpoint()
        buffers = self._note_lookups(keys, into)
        answers = [False] * len(keys)
        places_at: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            address = self._source(key)
            if address is not None:
                places_at.setdefault(address, []).append(position)

        async def ask(address: str, places: Sequence[int]) -> None:
            wanted = [keys[place] for place in places]
            found = await self._ask(address, wanted, [buffers[place] for place in places])
            for place, is_found in zip(places, found, strict=True):
                answers[place] = is_found

        begin_s = self._monotonic_s()
        async with anyio.create_task_group() as tasks:
            for address, places in places_at.items():
                for start in range(0, len(places), MAX_KEYS):
                    tasks.start_soon(ask, address, places[start : start + MAX_KEYS])
        num_found = sum(answers)
        self._counts.num_hits += num_found
        self._note_moved(num_found, begin_s, is_load=True, is_whole=num_found == len(keys))
        return answers

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        await checkpoint()
        return [self._source(key) is not None for key in keys]

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        """Forgets where they are; the others keep them."""
        await checkpoint()
        self._expected.remove(keys)

    def statistics(self) -> KVStoreStatistics:
        return self._statistics()

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        await self._wait_idle()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        if threads is not None:
            threads.shutdown()

    # -- inside

    def _source(self, key: CacheKey) -> str | None:
        """Whom to ask for it now."""
        now_s = self._monotonic_s()
        address = self._expected.source(key, now_s)
        if address is None or self._threads is None:
            return None
        peer = self._peers.get(address)
        return None if peer is not None and peer.rest.is_resting(now_s) else address

    async def _ask(self, address: str, keys: Sequence[CacheKey], into: Sequence[memoryview]) -> list[bool]:
        """What came whole within the time, in order of ``keys``."""
        with self._pending():
            with anyio.move_on_after(self._config.timeout_s) as waiting:
                await self._places.acquire()
            if waiting.cancelled_caught:
                self._fail(KVStoreFailureKind.BUSY, "too many other workers are being read", len(keys))
                return [False] * len(keys)
            try:
                return await self._exchange(address, keys, into)
            finally:
                self._places.release()

    async def _exchange(
        self, address: str, keys: Sequence[CacheKey], into: Sequence[memoryview]
    ) -> list[bool]:
        threads = self._threads
        if threads is None:
            return [False] * len(keys)
        peer = self._peer(address)
        exchange = PeerExchange(
            address,
            keys,
            into,
            connection=peer.idle.pop() if peer.idle else None,
            mappings=peer.mappings,
            secret=self._secret,
            timeout_s=self._config.timeout_s,
            connect_timeout_s=self._config.connect_timeout_s,
        )
        try:
            await run_to_end(threads, exchange.run, exchange.abort)
        except asyncio.CancelledError:  # whoever waited had no time for it: once is enough
            self._expected.remove(keys)
            raise
        except Overloaded as error:
            self._fail(KVStoreFailureKind.BUSY, f"{address}: {error}", exchange.found.count(False))
        except (DynamoError, OSError, ValueError) as error:
            self._fail(KVStoreFailureKind.IO, f"{address}: {error}", exchange.found.count(False))
            self._expected.remove_source(address)
            peer.close()
            self._note_error(peer.rest, address)
        else:
            peer.rest.worked()
        finally:
            if exchange.is_unmappable:
                peer.mappings = None
            if exchange.connection is not None:
                self._keep(address, peer, exchange.connection)
        if exchange.num_corrupt:
            self._fail(
                KVStoreFailureKind.CORRUPT,
                f"blocks of {address} are not what they should be",
                exchange.num_corrupt,
            )
        self._expected.remove(
            [key for key, is_found in zip(keys, exchange.found, strict=True) if not is_found]
        )
        return exchange.found

    def _peer(self, address: str) -> _Peer:
        now_s = self._monotonic_s()
        peer = self._peers.pop(address, None) or _Peer(_mappings(address))
        peer.asked_at_s = now_s
        self._peers[address] = peer
        oldest = next(iter(self._peers))
        if len(self._peers) > MAX_PEERS or self._peers[oldest].asked_at_s < now_s - FORGET_S:
            self._peers.pop(oldest).close()
        return peer

    def _keep(self, address: str, peer: _Peer, connection: socket.socket) -> None:
        is_wanted = self._threads is not None and self._peers.get(address) is peer
        if is_wanted and len(peer.idle) < self._config.num_concurrent:
            peer.idle.append(connection)
        else:
            connection.close()


def _mappings(address: str) -> Mappings | None:
    """A unix socket leads to a process of this host."""
    is_near = address.startswith("unix:")
    return Mappings(capacity=MAX_REGIONS) if is_near else None
