"""Moving KV bytes between workers: tickets, a block server on the prefill side, a fetcher on the decode side.

::

    prefill worker                                        decode worker
    params = server.issue(id, held_blocks, memory, ...)
      └── KVTransferParams ── request flow, DirectConnector ──> fetcher.fetch(params, pairs, memory, ...)
    BlockServer  <────────────── claim, done ──────────────── BlockFetcher
    BlockMemory  ──── mapped memory, NIXL or a socket ──────> BlockMemory      reslice: if they differ
"""

from .direct import DirectConnector
from .exchange import BackEnd, TransferReport
from .fetch import BlockFetcher, BlockFetcherStatistics
from .host import HostIdentity, host_identity
from .memory import HostBlockMemory
from .nixl import NixlTicket
from .server import BlockServer, BlockServerStatistics
from .ticket import DIRECT, DirectTicket, RegionTicket
from .ticket_book import TicketBook, TicketState

__all__ = [
    "DIRECT",
    "BackEnd",
    "BlockFetcher",
    "BlockFetcherStatistics",
    "BlockServer",
    "BlockServerStatistics",
    "DirectConnector",
    "DirectTicket",
    "HostBlockMemory",
    "HostIdentity",
    "NixlTicket",
    "RegionTicket",
    "TicketBook",
    "TicketState",
    "TransferReport",
    "host_identity",
]
