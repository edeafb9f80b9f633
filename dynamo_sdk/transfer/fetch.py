"""``BlockFetcher``: the decode side. Brings blocks from wherever a ticket says into the own engine's memory.

The loop schedules, cancels and keeps idle connections; each fetch itself is an ``Exchange`` on a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.types import KVTransferParams, TransferSettings

from .exchange import Exchange, FetchMeans, FetchOrder, TransferReport
from .host import HostIdentity
from .link import Link
from .nixl import AgentOnDemand
from .region import Mappings
from .reslice import plan_reslice
from .threads import run_to_end
from .ticket import DirectTicket, decode_ticket

logger = logging.getLogger(__name__)

MIN_BYTES_PER_CONNECTION = 16 << 20
"""Less than this is not worth another connection and thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFetcherStatistics:
    """``num_peers`` are block servers to which a connection is open."""

    num_fetching: int
    num_waiting: int
    num_peers: int
    num_idle_connections: int


@dataclass(slots=True)
class _Peer:
    """One block server. Its memory stays mapped as long as a connection to it is open: with the last
    one goes our claim on the RAM of a process that may be dead."""

    mappings: Mappings = field(default_factory=Mappings)
    agents: set[str] = field(default_factory=set)
    idle: list[socket.socket] = field(default_factory=list)
    num_active: int = 0


class BlockFetcher:
    """One per decode worker; all methods are called on one event loop.

    ``max_concurrent`` fetches run at once, each on a thread, the others wait in line.
    ``secret`` is shared with the block servers and proven, both ways, on TCP connections.
    """

    def __init__(
        self,
        *,
        secret: bytes | None = None,
        max_concurrent: int = 8,
        max_idle_per_peer: int = 4,
        settings: TransferSettings | None = None,
        host: HostIdentity | None = None,
        now: Callable[[], float] = time.monotonic,
        nixl: AgentOnDemand | None = None,
    ) -> None:
        self._secret = secret
        self._max_idle_per_peer = max_idle_per_peer
        self._settings = settings or TransferSettings()
        self._host = host
        self._now = now
        self._nixl = nixl or AgentOnDemand()
        self._peers: dict[tuple[str, ...], _Peer] = {}
        self._own_mappings = Mappings(is_writable=True)
        self._slots = asyncio.Semaphore(max_concurrent)
        self._threads = ThreadPoolExecutor(max_concurrent, thread_name_prefix="kv-fetch")
        self._tasks: set[asyncio.Task[object]] = set()
        self._num_fetching = 0
        self._is_closed = False

    async def fetch(
        self,
        params: KVTransferParams,
        pairs: Sequence[tuple[int, int]],
        into: BlockMemory,
        *,
        timeout_s: float,
        content: bytes = b"",
        allows_missing_heads: bool = False,
    ) -> TransferReport:
        """Copy blocks and end the ticket. ``pairs``: (index of an own block in the sequence, its id).

        The ticket's blocks may be built otherwise than ours (``reslice``). Heads that the prefill worker does
        not hold are refused, or left as they are with ``allows_missing_heads``: then fetch from its other
        ranks, too, one after the other. ``content``: what should lie in them, as ``BlockServer.issue`` was
        told; a ticket for anything else is ``TicketUnknown``.

        Returning means that every byte was read while the prefill worker vouched for it. No pairs is
        fine: the prefill side is told that nothing is needed. Raises ``TransferError`` (``TicketExpired``,
        ``TicketUnknown``): the own blocks of ``pairs`` then hold nothing of worth, prefill again.
        However this ends, also by cancellation, nobody writes into ``into`` afterwards.
        """
        ticket = decode_ticket(params)
        self._check(params, pairs)
        if ticket.content != content:
            raise TicketUnknown("the ticket is for other tokens or another adapter; prefill again")
        order = order_of(ticket, pairs, into, allows_missing_heads=allows_missing_heads)
        deadline_s = self._now() + timeout_s
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._slots.acquire()
            except TimeoutError as error:
                raise TransferError(f"no turn to fetch within {timeout_s:g} s; prefill again") from error
            try:
                return await self._exchange(order, deadline_s)
            finally:
                self._slots.release()
        finally:
            self._tasks.discard(task)

    def statistics(self) -> BlockFetcherStatistics:
        return BlockFetcherStatistics(
            num_fetching=self._num_fetching,
            num_waiting=len(self._tasks) - self._num_fetching,
            num_peers=len(self._peers),
            num_idle_connections=sum(len(peer.idle) for peer in self._peers.values()),
        )

    async def close(self) -> None:
        """Cancel what runs, wait for its threads, close all connections. Idempotent."""
        self._is_closed = True
        running = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for addresses in list(self._peers):
            while addresses in self._peers and self._peers[addresses].idle:
                self._drop_idle(addresses, self._peers[addresses].idle[-1])
        await asyncio.to_thread(self._nixl.close)
        self._threads.shutdown(wait=False)  # its threads are idle: every task has ended

    def _check(self, params: KVTransferParams, pairs: Sequence[tuple[int, int]]) -> None:
        if self._is_closed:
            raise TransferError("the block fetcher is closed")
        if params.ttl_s is not None and params.ttl_s <= 0:
            raise TicketExpired("the ticket's time was over before the fetch began; prefill again")
        if any(block_id < 0 for _, block_id in pairs):
            raise TransferError("block ids begin at 0")

    async def _exchange(self, order: FetchOrder, deadline_s: float) -> TransferReport:
        ticket = order.ticket
        peer = self._peers.setdefault(ticket.addresses, _Peer())
        if ticket.nixl is not None:
            peer.agents.add(ticket.nixl.agent)
        means = FetchMeans(
            settings=self._settings,
            host=self._host,
            peer_mappings=peer.mappings,
            own_mappings=self._own_mappings,
            nixl=self._nixl,
            now=self._now,
        )
        links = [
            Link(ticket, self._take_idle(peer), secret=self._secret, deadline_s=deadline_s, now=self._now)
            for _ in range(self._num_connections(order))
        ]
        exchange = Exchange(order, means, links)
        peer.num_active += 1
        self._num_fetching += 1
        try:
            return await run_to_end(self._threads, exchange.run, exchange.abort)
        finally:
            self._num_fetching -= 1
            peer.num_active -= 1
            for link in links:
                self._put_idle(ticket.addresses, peer, link.connection)
            self._forget_if_gone(ticket.addresses, peer)

    def _num_connections(self, order: FetchOrder) -> int:
        """For one stream. A small one, and one whose blocks are cut anew, comes over one."""
        if order.plan is not None:
            return 1
        num_bytes = len(order.pairs) * order.into.layout.block_bytes
        wanted = self._settings.connections or min(4, max(1, (os.cpu_count() or 1) // 4))
        return max(1, min(wanted, num_bytes // MIN_BYTES_PER_CONNECTION, len(order.pairs)))

    def _take_idle(self, peer: _Peer) -> socket.socket | None:
        if not peer.idle:
            return None
        connection = peer.idle.pop()
        asyncio.get_running_loop().remove_reader(connection)
        return connection

    def _put_idle(self, addresses: tuple[str, ...], peer: _Peer, connection: socket.socket | None) -> None:
        if connection is None:
            return
        if self._is_closed or len(peer.idle) >= self._max_idle_per_peer:
            connection.close()
            return
        connection.setblocking(False)
        peer.idle.append(connection)
        # A server says nothing unasked: a readable idle connection is a closed one.
        asyncio.get_running_loop().add_reader(connection, self._drop_idle, addresses, connection)

    def _drop_idle(self, addresses: tuple[str, ...], connection: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(connection)
        connection.close()
        peer = self._peers[addresses]
        peer.idle.remove(connection)
        self._forget_if_gone(addresses, peer)

    def _forget_if_gone(self, addresses: tuple[str, ...], peer: _Peer) -> None:
        if not peer.idle and not peer.num_active and self._peers.get(addresses) is peer:
            del self._peers[addresses]
            peer.mappings.clear()
            if peer.agents and not self._is_closed:
                self._threads.submit(self._forget_agents, peer.agents)

    def _forget_agents(self, names: set[str]) -> None:
        """On a thread: to disconnect may take a while."""
        for name in names:
            try:
                self._nixl.forget(name)
            except TransferError as error:
                logger.warning("a NIXL peer that is gone stays connected: %s", error)


def order_of(
    ticket: DirectTicket,
    pairs: Sequence[tuple[int, int]],
    into: BlockMemory,
    *,
    allows_missing_heads: bool = False,
) -> FetchOrder:
    """What there is to copy. Raises ``TransferError`` when it cannot be, with the reason."""
    num_held = len(ticket.block_ids)
    if ticket.layout == into.layout:
        for index, block_id in pairs:
            if not 0 <= index < num_held:
                raise TransferError(f"block {index} into {block_id}: the ticket holds {num_held} blocks")
        return FetchOrder(ticket=ticket, pairs=pairs, into=into)
    try:
        plan = plan_reslice(ticket.layout, into.layout)
        copies = plan.units(pairs, num_held)
    except ValueError as error:
        raise TransferError(f"prefill and decode cannot hand over blocks: {error}") from error
    if not plan.fills_target and not allows_missing_heads:
        raise TransferError("the prefill worker holds only some of our heads; fetch from all of its ranks")
    return FetchOrder(ticket=ticket, pairs=pairs, into=into, plan=plan, copies=copies)
