"""One fetch, start to end, as plain blocking code on a thread of its own.

The event loop only starts it and may ``abort`` it; from then on every step raises, a wait on the socket
ends at once and a copy at the end of its present piece.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

from xxhash import xxh3_128_digest

from dynamo_sdk.errors import ConfigError, TransferError
from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.types import TransferSettings

from . import wire
from .checksums import block_checksums
from .copying import copy_blocks
from .host import HostIdentity, host_identity
from .link import Link
from .nixl import AgentOnDemand, NixlAgent, nixl_pays
from .region import Mappings
from .reslice import Reslice, UnitCopy
from .slicing import Slicer
from .stream import receive_blocks, receive_pieces
from .threads import run_together
from .ticket import DirectTicket

BackEnd = Literal["shm", "unix", "tcp", "nixl"]
"""What moved the blocks: mapped memory, a stream through that kind of socket, or NIXL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What one fetch moved. ``num_blocks`` and ``num_bytes`` are those of our own blocks that were filled."""

    num_blocks: int
    num_bytes: int
    duration_s: float
    back_end: BackEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """What to fetch. ``pairs``: (index of an own block in the sequence, its id).

    ``plan`` is set when the layouts differ; then ``copies`` say which unit goes where. Otherwise the index
    of an own block is the index of the ticket's.
    """

    ticket: DirectTicket
    pairs: Sequence[tuple[int, int]]
    into: BlockMemory
    plan: Reslice | None = None
    copies: Sequence[UnitCopy] = ()

    def needed_indexes(self) -> list[int]:
        """Which of the ticket's blocks, each once where they are cut."""
        if self.plan is None:
            return [index for index, _ in self.pairs]
        return sorted({copy.source_index for copy in self.copies})

    def own_ids(self) -> list[int]:
        return [block_id for _, block_id in self.pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchMeans:
    """What a fetcher has to fetch with. ``host``: who we are, None = find out."""

    settings: TransferSettings
    host: HostIdentity | None
    peer_mappings: Mappings
    own_mappings: Mappings
    nixl: AgentOnDemand
    now: Callable[[], float]


class Exchange:
    """Fetch what one ticket grants. ``run`` once, on a thread; ``abort`` from any other."""

    def __init__(self, order: FetchOrder, means: FetchMeans, links: Sequence[Link]) -> None:
        """``links``: the first one claims; the others help where blocks are streamed."""
        self._order = order
        self._means = means
        self._link, *self._helpers = links

    def abort(self) -> None:
        """Make ``run`` raise soon. Idempotent."""
        for link in (self._link, *self._helpers):
            link.abort()

    def run(self) -> TransferReport:
        """Raises ``TransferError``; then the blocks of ``pairs`` hold nothing of worth."""
        started_s = self._means.now()
        try:
            back_end = self._fetch()
        except Exception as error:
            # The frames of a traceback that lives on would keep the memory of a dead peer mapped.
            traceback.clear_frames(error.__traceback__)
            failure = self._link.failure(error)
            if failure is error:
                raise
            raise failure from error
        num_blocks = len(self._order.pairs)
        return TransferReport(
            num_blocks=num_blocks,
            num_bytes=num_blocks * self._order.into.layout.block_bytes,
            duration_s=self._means.now() - started_s,
            back_end=back_end,
        )

    def _fetch(self) -> BackEnd:
        link, order = self._link, self._order
        host = self._means.host or host_identity()  # reads files, hence here on the thread
        connection = link.open(host)
        ticket_id, indexes = order.ticket.ticket_id, order.needed_indexes()
        own_memory = self._means.own_mappings.map_own(order.into)
        peer_memory = self._peer_memory(host)
        agent = None if peer_memory is not None else self._agent()
        if peer_memory is None and agent is None:
            received = self._stream(host, connection, own_memory, indexes)
        else:
            link.send(wire.Claim(ticket_id, []))
            if agent is None:
                assert peer_memory is not None
                received = self._copy(peer_memory, own_memory, indexes)
            else:
                received = self._read(agent, own_memory)
            link.receive(wire.Claimed)
        link.send(wire.Done(indexes if self._verifies else []))
        released = link.receive(wire.Released)
        if self._verifies and released.checksums != received:
            raise TransferError("what arrived is not what was sent (checksums differ); prefill again")
        if peer_memory is not None:
            return "shm"
        if agent is not None:
            return "nixl"
        return "unix" if connection.family == socket.AF_UNIX else "tcp"

    # --- which way

    @property
    def _verifies(self) -> bool:
        return self._means.settings.verify

    def _peer_memory(self, host: HostIdentity) -> memoryview | None:
        wanted, ticket = self._means.settings.back_end, self._order.ticket
        if wanted not in ("auto", "shm"):
            return None
        memory = None
        if ticket.region is not None and host.can_share_memory(ticket.host):
            memory = self._means.peer_mappings.map(ticket.region)
        if memory is None and wanted == "shm":
            raise TransferError("the prefill worker's memory cannot be mapped here, and back_end is shm")
        return memory

    def _agent(self) -> NixlAgent | None:
        wanted, order = self._means.settings.back_end, self._order
        offer, is_forced = order.ticket.nixl, wanted == "nixl"
        if wanted == "stream" or (wanted == "auto" and (offer is None or not nixl_pays(order.into))):
            return None
        if offer is None or order.plan is not None or order.into.span is None:
            if is_forced:
                raise TransferError(
                    "the prefill worker offers no NIXL, or its blocks must be cut differently, or our own do "
                    "not lie in one piece; back_end is nixl"
                )
            return None
        try:
            agent = self._means.nixl.agent()
            agent.register(order.into)
        except (ConfigError, TransferError) as error:
            if is_forced:
                raise TransferError(str(error)) from error
            return None
        return agent

    # --- the ways; each returns the checksums of what arrived, if they are wanted

    def _stream(
        self,
        host: HostIdentity,
        connection: socket.socket,
        own_memory: memoryview | None,
        indexes: list[int],
    ) -> list[bytes]:
        order, remaining_s = self._order, self._link.remaining_s
        if order.plan is None:
            self._stream_shares(host, own_memory, indexes)
            return self._own_checksums(own_memory)
        self._link.send(wire.Claim(order.ticket.ticket_id, indexes))
        self._link.receive(wire.Claimed)
        slicer = Slicer(order.plan, order.into, own_memory)
        size, checksums, done = order.ticket.layout.block_bytes, [], 0
        for first, piece in receive_pieces(connection, size, len(indexes), remaining_s):
            blocks = indexes[first : first + len(piece) // size]
            offsets = {index: position * size for position, index in enumerate(blocks)}
            end = next(
                (at for at in range(done, len(order.copies)) if order.copies[at].source_index not in offsets),
                len(order.copies),
            )
            slicer.copy(piece, offsets, order.copies[done:end], remaining_s)
            done = end
            if self._verifies:
                checksums += [xxh3_128_digest(piece[start : start + size]) for start in offsets.values()]
        return checksums

    def _stream_shares(self, host: HostIdentity, own_memory: memoryview | None, indexes: list[int]) -> None:
        """An equal share of the blocks over each link."""
        order, links = self._order, [self._link, *self._helpers]
        own_ids, ticket_id = order.own_ids(), order.ticket.ticket_id
        bounds = [len(indexes) * number // len(links) for number in range(len(links) + 1)]
        shares = [slice(first, end) for first, end in pairwise(bounds)]

        def receive(link: Link, share: slice) -> None:
            try:
                connection = link.open(host)
                if link is not self._link:
                    link.send(wire.Join(ticket_id, indexes[share]))
                    link.receive(wire.Claimed)
                receive_blocks(connection, order.into, own_memory, own_ids[share], link.remaining_s)
            except Exception as error:  # said here: once the links are aborted, all failures look like that
                raise link.failure(error) from error

        self._link.send(wire.Claim(ticket_id, indexes[shares[0]]))
        self._link.receive(wire.Claimed)
        work = [partial(receive, link, share) for link, share in zip(links, shares, strict=True)]
        run_together(work, self.abort)

    def _copy(
        self, peer_memory: memoryview, own_memory: memoryview | None, indexes: list[int]
    ) -> list[bytes]:
        order, remaining_s = self._order, self._link.remaining_s
        held = order.ticket.block_ids
        if order.plan is None:
            source_ids = [held[index] for index in indexes]
            copy_blocks(peer_memory, source_ids, order.into, own_memory, order.own_ids(), remaining_s)
            return self._own_checksums(own_memory)
        size = order.ticket.layout.block_bytes
        offsets = [block_id * size for block_id in held]
        Slicer(order.plan, order.into, own_memory).copy(peer_memory, offsets, order.copies, remaining_s)
        if not self._verifies:
            return []
        return [xxh3_128_digest(peer_memory[offsets[index] : offsets[index] + size]) for index in indexes]

    def _read(self, agent: NixlAgent, own_memory: memoryview | None) -> list[bytes]:
        order = self._order
        assert order.ticket.nixl is not None
        source_ids = [order.ticket.block_ids[index] for index, _ in order.pairs]
        agent.read(order.ticket.nixl, source_ids, order.into, order.own_ids(), self._link.remaining_s)
        return self._own_checksums(own_memory)

    def _own_checksums(self, own_memory: memoryview | None) -> list[bytes]:
        """Of what lies in our own blocks now."""
        if not self._verifies:
            return []
        order = self._order
        return block_checksums(order.into, own_memory, order.own_ids(), self._link.remaining_s)
