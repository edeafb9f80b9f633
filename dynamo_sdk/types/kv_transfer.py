"""The ticket that lets a decode worker fetch what a prefill worker wrote."""

from __future__ import annotations

import msgspec


class KVTransferParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Opaque to everybody but the connector that made it.

    ``ttl_s``: seconds for which the blocks stay valid, counted by every holder from the moment it
    received the ticket with its own clock, so that hosts need no common time; the flow subtracts what
    it spent before it passes the ticket on. None = the engine guards its blocks itself.
    """

    connector: str
    payload: bytes
    ttl_s: float | None = None


class KVSource(msgspec.Struct, frozen=True, kw_only=True):
    """Another worker whose tiers are said to hold the first ``num_blocks`` blocks of a request. ``address``:
    where they can be read (``unix:/path``, ``tcp:host:port``). A hint: it may be wrong by the time it is
    followed."""

    worker_id: str
    address: str
    num_blocks: int


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What both sides must agree on before a byte is copied.

    ``fingerprint`` names model, dtype, heads, head size and layer count; ``block_bytes`` is one block of
    ``block_size`` tokens over all layers, keys and values together, contiguous.
    """

    fingerprint: str
    block_size: int
    block_bytes: int
