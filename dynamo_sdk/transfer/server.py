"""``BlockServer``: the prefill side. Hands out tickets and serves the blocks behind them, once.

``TicketBook`` decides; this shell owns the sockets, the timer and the release callbacks. Control frames
are read on the event loop, block bytes leave on threads.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from dynamo_sdk.errors import ConnectionLost, ProtocolError, TransferError
from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.types import KVTransferParams, TransferSettings

from . import wire
from .acceptor import Acceptor, receive_frame, send_frame
from .address import shut
from .checksums import block_checksums
from .host import HostIdentity, host_identity
from .nixl import AgentOnDemand
from .offers import MemoryOffers
from .region import Mappings
from .stream import send_blocks
from .threads import run_to_end
from .ticket import DirectTicket, encode_ticket
from .ticket_book import TicketBook

logger = logging.getLogger(__name__)

_MIN_TIMER_S = 0.01  # an injected clock may run slower than the loop's: do not spin


@dataclass(slots=True, eq=False)
class _Grant:
    """What a live ticket holds. ``sending``: the sockets through which its blocks leave now."""

    request_id: str
    block_ids: tuple[int, ...]
    memory: BlockMemory
    release: Callable[[], None]
    sending: set[socket.socket] = field(default_factory=set[socket.socket])
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    def at(self, indexes: Sequence[int]) -> list[int]:
        """Block ids. Raises ``ProtocolError`` for an index that there is not."""
        if indexes and not 0 <= min(indexes) <= max(indexes) < len(self.block_ids):
            raise ProtocolError(f"a block outside of the ticket's {len(self.block_ids)} was asked for")
        return [self.block_ids[index] for index in indexes]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockServerStatistics:
    num_live_tickets: int
    num_fetching: int
    num_connections: int
    num_fetched: int
    num_expired: int
    num_revoked: int
    num_abandoned: int


class BlockServer:
    """One per prefill worker; all methods are called on one event loop.

    A claimed ticket must be copied within ``lease_s``, a new connection introduce itself within
    ``handshake_s``. ``secret`` is asked of TCP connections; socket files are protected by their mode.
    Beyond ``max_connections`` new ones are closed at once.
    """

    def __init__(
        self,
        *,
        secret: bytes | None = None,
        lease_s: float = 30.0,
        handshake_s: float = 5.0,
        max_connections: int = 256,
        max_concurrent_sends: int = 16,
        settings: TransferSettings | None = None,
        host: HostIdentity | None = None,
        now: Callable[[], float] = time.monotonic,
        nixl: AgentOnDemand | None = None,
    ) -> None:
        self._acceptor = Acceptor(
            self._serve,
            peer="KV fetcher",
            secret=secret,
            handshake_s=handshake_s,
            max_connections=max_connections,
        )
        self._offers = MemoryOffers(settings or TransferSettings(), nixl or AgentOnDemand())
        self._lease_s = lease_s
        self._host = host
        self._now = now
        self._book: TicketBook[_Grant] = TicketBook()
        self._threads = ThreadPoolExecutor(max_concurrent_sends, thread_name_prefix="kv-send")
        self._mappings = Mappings()
        self._addresses: tuple[str, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._counts = {"fetched": 0, "expired": 0, "revoked": 0, "abandoned": 0}
        self._is_closed = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where fetchers reach this server, with real ports, in the order given to ``start``."""
        return self._addresses

    async def start(self, addresses: Sequence[str], *, advertise_host: str | None = None) -> None:
        """As ``Acceptor.start``, the preferred address first."""
        self._host = self._host or await asyncio.to_thread(host_identity)
        self._addresses = await self._acceptor.start(addresses, advertise_host=advertise_host)

    async def register(self, memory: BlockMemory) -> None:
        """Offer ``memory`` through NIXL from now on, where the settings want that or it pays. Takes seconds.
        Raises ``ConfigError`` when NIXL is a must and cannot work."""
        await asyncio.to_thread(self._offers.register, memory)

    def issue(
        self,
        request_id: str,
        block_ids: Sequence[int],
        memory: BlockMemory,
        *,
        ttl_s: float,
        release: Callable[[], None],
        content: bytes = b"",
    ) -> KVTransferParams:
        """A ticket for these blocks, good for one fetch that starts within ``ttl_s``. ``content``: names what
        lies in them, for ``BlockFetcher.fetch`` to compare.

        ``release`` is called exactly once, on the event loop: after the fetch, on ``revoke``, at the end
        of ``ttl_s``, when the reader dies or hangs, or on ``close``. When this raises it is not called.
        Raises ``TransferError`` when the server is not running or the request has a live ticket.
        """
        if not self._addresses or self._is_closed:
            raise TransferError("the block server is not running: no ticket can be issued")
        assert self._host is not None, "set by start"
        self.sweep()
        ticket_id = secrets.token_bytes(24)
        grant = _Grant(request_id, tuple(block_ids), memory, release)
        self._book.issue(ticket_id, request_id, grant, deadline_s=self._now() + ttl_s)
        self._arm()
        ticket = DirectTicket(
            ticket_id=ticket_id,
            addresses=self._addresses,
            layout=memory.layout,
            block_ids=list(block_ids),
            host=self._host,
            region=self._offers.region(memory),
            nixl=self._offers.nixl(memory),
            content=content,
        )
        return encode_ticket(ticket, ttl_s=ttl_s)

    def revoke(self, request_id: str) -> None:
        """End the request's ticket, whatever its state; a fetch under way fails. Idempotent."""
        grant = self._book.revoke(request_id)
        if grant is not None:
            self._release("revoked", [grant])

    def sweep(self) -> None:
        """Release what is past its deadline. The timer does this by itself."""
        self._release("expired", self._book.expire(self._now()))
        self._arm()

    def statistics(self) -> BlockServerStatistics:
        return BlockServerStatistics(
            num_live_tickets=len(self._book),
            num_fetching=self._book.num_fetching,
            num_connections=self._acceptor.num_connections,
            num_fetched=self._counts["fetched"],
            num_expired=self._counts["expired"],
            num_revoked=self._counts["revoked"],
            num_abandoned=self._counts["abandoned"],
        )

    async def close(self) -> None:
        """Revoke every ticket, end every connection, wait for the threads. Idempotent."""
        self._is_closed = True
        self._release("revoked", self._book.revoke_all())
        self._arm()
        await self._acceptor.close()
        await asyncio.to_thread(self._offers.close)
        self._threads.shutdown(wait=False)  # its threads are idle: every task has ended

    # --- tickets

    def _release(self, why: str, grants: Iterable[_Grant]) -> None:
        for grant in grants:
            self._counts[why] += 1
            for connected in grant.sending:
                shut(connected)
            try:
                grant.release()
            except Exception:
                logger.exception("releasing the blocks of request %s failed", grant.request_id)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_s = self._book.next_deadline_s()
        if deadline_s is not None:
            delay_s = max(deadline_s - self._now(), _MIN_TIMER_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.sweep)

    # --- connections

    async def _serve(self, connected: socket.socket) -> None:
        while True:
            asked = await self._receive(connected)
            if isinstance(asked, wire.Claim):
                await self._serve_claim(connected, asked)
            elif isinstance(asked, wire.Join):
                await self._serve_join(connected, asked)
            else:
                raise ProtocolError(f"expected Claim or Join, got {type(asked).__name__}")

    async def _serve_claim(self, connected: socket.socket, claim: wire.Claim) -> None:
        self.sweep()
        try:
            grant = self._book.claim(claim.ticket_id, now_s=self._now(), lease_s=self._lease_s)
        except TransferError as error:
            await self._send(connected, wire.Refused(error.code, error.message))
            return
        try:
            self._arm()
            with nullcontext() if claim.indexes else self._serving(grant.memory):
                await self._fulfil(connected, claim, grant)
        finally:
            abandoned = self._book.abandon(claim.ticket_id)
            if abandoned is not None:
                self._release("abandoned", [abandoned])
            self._arm()

    async def _fulfil(self, connected: socket.socket, claim: wire.Claim, grant: _Grant) -> None:
        block_ids = grant.at(claim.indexes)
        await self._send(connected, wire.Claimed())
        if block_ids:
            await self._stream(connected, grant, block_ids)
        done = await self._receive(connected)
        if not isinstance(done, wire.Done):
            raise ProtocolError(f"expected Done, got {type(done).__name__}")
        checksums = await self._checksums(grant, done.verified) if done.verified else []
        while grant.sending:  # what other connections sent has arrived; their threads have yet to say so
            grant.sent.clear()
            await grant.sent.wait()
        self.sweep()
        try:
            self._release("fetched", [self._book.finish(claim.ticket_id, now_s=self._now())])
        except TransferError as error:
            await self._send(connected, wire.Refused(error.code, error.message))
        else:
            await self._send(connected, wire.Released(checksums))

    @contextmanager
    def _serving(self, memory: BlockMemory) -> Iterator[None]:
        """Somebody may read ``memory`` through NIXL meanwhile, as long as the lease is."""
        end = self._offers.begin_serving(memory)
        if end is None:
            yield
            return
        timer = asyncio.get_running_loop().call_later(self._lease_s, end)
        try:
            yield
        finally:
            timer.cancel()
            end()

    async def _serve_join(self, connected: socket.socket, join: wire.Join) -> None:
        try:
            grant = self._book.join(join.ticket_id, now_s=self._now())
        except TransferError as error:
            await self._send(connected, wire.Refused(error.code, error.message))
            return
        block_ids = grant.at(join.indexes)
        await self._send(connected, wire.Claimed())
        await self._stream(connected, grant, block_ids)

    async def _stream(self, connected: socket.socket, grant: _Grant, block_ids: list[int]) -> None:
        grant.sending.add(connected)
        mapped = self._mappings.map_own(grant.memory)
        work = partial(send_blocks, connected, grant.memory, mapped, block_ids, self._lease())
        try:
            await run_to_end(self._threads, work, partial(shut, connected))
        finally:
            grant.sending.discard(connected)
            grant.sent.set()
            connected.setblocking(False)

    async def _checksums(self, grant: _Grant, indexes: list[int]) -> list[bytes]:
        block_ids, remaining_s, is_over = grant.at(indexes), self._lease(), threading.Event()

        def go_on_s() -> float:
            if is_over.is_set():
                raise ConnectionLost("nobody waits for the checksums any more")
            return remaining_s()

        mapped = self._mappings.map_own(grant.memory)
        work = partial(block_checksums, grant.memory, mapped, block_ids, go_on_s)
        return await run_to_end(self._threads, work, is_over.set)

    def _lease(self) -> Callable[[], float]:
        """Counts a new lease down; raises ``TimeoutError`` at its end."""
        deadline_s = self._now() + self._lease_s

        def remaining_s() -> float:
            left_s = deadline_s - self._now()
            if left_s <= 0:
                raise TimeoutError("the lease is over")
            return left_s

        return remaining_s

    async def _send(self, connected: socket.socket, message: wire.FromServer) -> None:
        await send_frame(connected, wire.frame(message))

    async def _receive(self, connected: socket.socket) -> wire.FromFetcher:
        return wire.decode_from_fetcher(await receive_frame(connected))
