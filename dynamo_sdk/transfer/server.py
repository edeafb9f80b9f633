"""``BlockServer``: the prefill side. Hands out tickets and serves the blocks behind them, once.

``TicketBook`` decides; this shell owns the sockets, the timer and the release callbacks. Control frames
are read on the event loop, block bytes leave on threads.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dynamo_sdk.errors import (
    ConnectionLost,
    HandshakeError,
    ProtocolError,
    TransferError,
    WireError,
)
from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.types import KVTransferParams

from . import wire
from .address import (
    UNSPECIFIED_HOSTS,
    Address,
    TcpAddress,
    UnixAddress,
    bound_address,
    listen,
    parse_address,
    prepare,
    shut,
)
from .host import HostIdentity, host_identity
from .region import Mappings, describe_region
from .stream import send_blocks
from .threads import run_to_end
from .ticket import DirectTicket, RegionTicket, encode_ticket
from .ticket_book import TicketBook

logger = logging.getLogger(__name__)

_MIN_TIMER_S = 0.01  # an injected clock may run slower than the loop's: do not spin


@dataclass(slots=True, eq=False)
class _Grant:
    """What a live ticket holds. ``sending`` is set while its blocks leave through a socket."""

    request_id: str
    block_ids: tuple[int, ...]
    memory: BlockMemory
    release: Callable[[], None]
    sending: socket.socket | None = None


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
        host: HostIdentity | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = secret
        self._lease_s = lease_s
        self._handshake_s = handshake_s
        self._max_connections = max_connections
        self._host = host
        self._now = now
        self._book: TicketBook[_Grant] = TicketBook()
        self._threads = ThreadPoolExecutor(max_concurrent_sends, thread_name_prefix="kv-send")
        self._mappings = Mappings()
        self._listeners: list[socket.socket] = []
        self._addresses: tuple[str, ...] = ()
        self._accepting: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._counts = {"fetched": 0, "expired": 0, "revoked": 0, "abandoned": 0}
        self._is_closed = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where fetchers reach this server, with real ports, in the order given to ``start``."""
        return self._addresses

    async def start(self, addresses: Sequence[str], *, advertise_host: str | None = None) -> None:
        """Listen on ``unix:/path`` or ``tcp:host:port`` (port 0: a free one), the preferred one first.

        ``advertise_host``: the name under which others reach the TCP ones; needed when they listen on all
        interfaces. Raises ``ValueError`` for addresses that mean nothing, ``OSError`` for those in use.
        """
        parsed = [parse_address(text) for text in addresses]
        for address in parsed:
            if isinstance(address, TcpAddress) and address.host in UNSPECIFIED_HOSTS and not advertise_host:
                raise ValueError(
                    f"{address} listens on all interfaces; say advertise_host, others need one name"
                )
        try:
            await asyncio.to_thread(self._listen, parsed)
        except BaseException:
            await asyncio.to_thread(self._close_listeners)
            raise
        self._addresses = tuple(
            str(bound_address(listener, advertise_host=advertise_host)) for listener in self._listeners
        )
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]

    def issue(
        self,
        request_id: str,
        block_ids: Sequence[int],
        memory: BlockMemory,
        *,
        ttl_s: float,
        release: Callable[[], None],
    ) -> KVTransferParams:
        """A ticket for these blocks, good for one fetch that starts within ``ttl_s``.

        ``release`` is called exactly once, on the event loop: after the fetch, on ``revoke``, at the end
        of ``ttl_s``, when the reader dies or hangs, or on ``close``. When this raises it is not called.
        Raises ``TransferError`` when the server is not running or the request has a live ticket.
        """
        if not self._addresses or self._is_closed:
            raise TransferError("the block server is not running: no ticket can be issued")
        assert self._host is not None, "set by start"
        self.sweep()
        region = self._region(memory)
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
            region=region,
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
            num_connections=len(self._serving),
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
        tasks = [*self._accepting, *self._serving]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.to_thread(self._close_listeners)
        self._threads.shutdown(wait=False)  # its threads are idle: every task has ended

    # --- tickets

    def _release(self, why: str, grants: Iterable[_Grant]) -> None:
        for grant in grants:
            self._counts[why] += 1
            if grant.sending is not None:
                shut(grant.sending)
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

    def _region(self, memory: BlockMemory) -> RegionTicket | None:
        region = memory.shared_region
        if region is None:
            return None
        try:
            return describe_region(region)
        except OSError as error:
            logger.warning("the shared KV blocks cannot be found, they will be streamed: %s", error)
            return None

    # --- connections

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or a peer that left while it was waiting
                logger.warning("accepting a KV fetcher failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._serving) >= self._max_connections:
                logger.warning("a KV fetcher was turned away: %d connections are open", self._max_connections)
                connected.close()
                continue
            task = asyncio.create_task(self._serve(connected))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        try:
            prepare(connected)
            async with asyncio.timeout(self._handshake_s):
                await self._shake_hands(connected)
            while True:
                claim = await self._receive(connected)
                if not isinstance(claim, wire.Claim):
                    raise ProtocolError(f"expected Claim, got {type(claim).__name__}")
                await self._serve_claim(connected, claim)
        except (ConnectionLost, OSError) as error:  # TimeoutError is an OSError
            logger.debug("a KV fetcher left: %s", error)
        except WireError as error:
            logger.warning("a KV fetcher was turned away: %s", error)
        finally:
            connected.close()

    async def _shake_hands(self, connected: socket.socket) -> None:
        secret = None if connected.family == socket.AF_UNIX else self._secret
        greeting = wire.greet(secret)
        await self._send(connected, greeting)
        introduction = await self._receive(connected)
        if not isinstance(introduction, wire.Introduction):
            raise ProtocolError(f"expected Introduction, got {type(introduction).__name__}")
        try:
            answer = wire.welcome(greeting, introduction, secret)
        except HandshakeError as error:
            await self._send(connected, wire.Refused(error.code, error.message))
            raise
        await self._send(connected, answer)

    async def _serve_claim(self, connected: socket.socket, claim: wire.Claim) -> None:
        self.sweep()
        try:
            grant = self._book.claim(claim.ticket_id, now_s=self._now(), lease_s=self._lease_s)
        except TransferError as error:
            await self._send(connected, wire.Refused(error.code, error.message))
            return
        try:
            self._arm()
            if claim.indexes and not 0 <= min(claim.indexes) <= max(claim.indexes) < len(grant.block_ids):
                raise ProtocolError(f"a block outside of the ticket's {len(grant.block_ids)} was asked for")
            await self._send(connected, wire.Claimed())
            if claim.indexes:
                block_ids = [grant.block_ids[index] for index in claim.indexes]
                await self._stream(connected, grant, block_ids)
            done = await self._receive(connected)
            if not isinstance(done, wire.Done):
                raise ProtocolError(f"expected Done, got {type(done).__name__}")
            self.sweep()
            try:
                self._release("fetched", [self._book.finish(claim.ticket_id, now_s=self._now())])
            except TransferError as error:
                await self._send(connected, wire.Refused(error.code, error.message))
            else:
                await self._send(connected, wire.Released())
        finally:
            abandoned = self._book.abandon(claim.ticket_id)
            if abandoned is not None:
                self._release("abandoned", [abandoned])
            self._arm()

    async def _stream(self, connected: socket.socket, grant: _Grant, block_ids: list[int]) -> None:
        grant.sending = connected
        deadline_s = self._now() + self._lease_s

        def remaining_s() -> float:
            left_s = deadline_s - self._now()
            if left_s <= 0:
                raise TimeoutError("the lease is over")
            return left_s

        mapped = self._mappings.map_own(grant.memory)
        try:
            await run_to_end(
                self._threads,
                partial(send_blocks, connected, grant.memory, mapped, block_ids, remaining_s),
                partial(shut, connected),
            )
        finally:
            grant.sending = None
            connected.setblocking(False)

    async def _send(self, connected: socket.socket, message: wire.FromServer) -> None:
        await asyncio.get_running_loop().sock_sendall(connected, wire.frame(message))

    async def _receive(self, connected: socket.socket) -> wire.FromFetcher:
        head = await self._receive_exactly(connected, wire.HEAD_BYTES)
        return wire.decode_from_fetcher(await self._receive_exactly(connected, wire.body_bytes(head)))

    async def _receive_exactly(self, connected: socket.socket, num_bytes: int) -> bytearray:
        loop = asyncio.get_running_loop()
        buffer = bytearray(num_bytes)
        view = memoryview(buffer)
        while view:
            received = await loop.sock_recv_into(connected, view)
            if received == 0:
                raise ConnectionLost("the fetcher closed the connection")
            view = view[received:]
        return buffer

    def _listen(self, addresses: Iterable[Address]) -> None:
        self._host = self._host or host_identity()
        for address in addresses:
            self._listeners.append(listen(address))

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            address = bound_address(listener, advertise_host=None)
            listener.close()
            if isinstance(address, UnixAddress):
                Path(address.path).unlink(missing_ok=True)
        self._listeners.clear()
