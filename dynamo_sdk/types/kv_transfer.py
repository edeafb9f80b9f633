"""The ticket that lets a decode worker fetch what a prefill worker wrote."""

from __future__ import annotations

from typing import Literal

import msgspec

KVAxis = Literal["layer", "kv", "head", "token"]
"""``kv``: keys, then values."""


BackEndChoice = Literal["auto", "shm", "nixl", "stream"]


class TransferSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How blocks are to travel. ``back_end``: ``auto`` maps the memory of a peer on the same host, else uses
    NIXL where both sides have it and it pays, else a socket. Any other value uses that one or fails.

    ``verify``: compare checksums of every block before it counts, which costs both sides a look at all bytes.

    ``connections``: over how many connections the blocks of one large fetch come. None: one for every four
    cores, four at most, because each keeps one core busy at both ends.
    """

    back_end: BackEndChoice = "auto"
    verify: bool = False
    connections: int | None = None


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


class KVShape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a block is built, so that engines which cut the same KV differently can hand over.

    ``order``: the axes outermost first, each once; innermost lies one vector of ``head_bytes``, the keys or
    the values of one head for one token. Of the model's ``num_heads`` KV heads this memory holds
    ``num_own_heads`` from ``first_head`` on: tensor parallelism splits them.
    """

    model: str
    dtype: str
    num_layers: int
    num_heads: int
    head_bytes: int
    num_own_heads: int
    first_head: int = 0
    order: tuple[KVAxis, ...] = ("layer", "kv", "head", "token")

    @property
    def end_head(self) -> int:
        return self.first_head + self.num_own_heads

    def block_bytes(self, block_size: int) -> int:
        return self.num_layers * 2 * self.num_own_heads * block_size * self.head_bytes

    def strides(self, block_size: int) -> dict[KVAxis, int]:
        """By axis, the bytes from one index to the next, in blocks of ``block_size`` tokens."""
        lengths: dict[KVAxis, int] = {
            "layer": self.num_layers,
            "kv": 2,
            "head": self.num_own_heads,
            "token": block_size,
        }
        strides: dict[KVAxis, int] = {}
        stride = self.head_bytes
        for axis in reversed(self.order):
            strides[axis] = stride
            stride *= lengths[axis]
        return strides


class KVLayout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What both sides must agree on before a byte is copied.

    ``fingerprint`` names model, dtype, heads, head size and layer count; ``block_bytes`` is one block of
    ``block_size`` tokens over all layers, keys and values together, contiguous. Layouts that are not equal
    can still meet where both have a ``shape``.
    """

    fingerprint: str
    block_size: int
    block_bytes: int
    shape: KVShape | None = None
