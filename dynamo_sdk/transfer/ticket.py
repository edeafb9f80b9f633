"""What a prefill worker's answer carries: where the blocks are, and the right to read them once."""

from __future__ import annotations

import msgspec

from dynamo_sdk.errors import TransferError
from dynamo_sdk.types import KVLayout, KVTransferParams

from .host import HostIdentity
from .nixl import NixlTicket

DIRECT = "direct"
"""The connector's name, in the registry and in ``KVTransferParams.connector``."""


class RegionTicket(msgspec.Struct, frozen=True, kw_only=True):
    """The server's ``SharedRegion``. ``inode`` tells it from whatever else a recycled pid has open."""

    pid: int
    fd: int
    size_bytes: int
    inode: int


class DirectTicket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of the direct connector, in MessagePack.

    ``ticket_id`` is random and unguessable: who knows it may read the blocks, once.
    ``addresses`` of the block server: ``unix:/path`` or ``tcp:host:port``, the best one first.
    ``block_ids``: where the blocks lie in the server's memory, in order; a fetcher that maps the memory
    reads them there, every other one names those that it wants by their position in this list.
    ``content``: names what lies in the blocks; a fetcher that means something else takes none of it.
    """

    ticket_id: bytes
    addresses: tuple[str, ...]
    layout: KVLayout
    block_ids: list[int]
    host: HostIdentity
    region: RegionTicket | None = None
    nixl: NixlTicket | None = None
    content: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DirectTicket)


def encode_ticket(ticket: DirectTicket, *, ttl_s: float) -> KVTransferParams:
    """Wrap a ticket for its way through the request flow."""
    return KVTransferParams(connector=DIRECT, payload=_encoder.encode(ticket), ttl_s=ttl_s)


def decode_ticket(params: KVTransferParams) -> DirectTicket:
    """Unwrap it. Raises ``TransferError`` when another connector made it or it is damaged."""
    if params.connector != DIRECT:
        raise TransferError(
            f"a ticket of connector {params.connector!r} reached {DIRECT!r}; "
            "both legs of a hand-over need the same connector"
        )
    try:
        return _decoder.decode(params.payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TransferError(f"damaged ticket: {error}") from error
