"""What a reader of another worker's tiers and the server of those say to each other.

::

    reader                                   peer server
              (handshake of transfer/wire.py)
    Ask  ──>                                 keys, in the order of their sequence
              <── Piece                      which of the next keys it has, and a checksum for each of those
              <── (raw bytes)                these blocks
              <── Piece, (raw bytes)         until every key is answered; any number of asks may follow

A reader that may map the server's memory says so in its ask. Then no blocks follow a piece: it says where
they lie, and the reader sends ``TAKEN`` when it has copied them. The checksum of what was copied has to
agree all the same: a reader that was given up on copies what is another one's by then.

Pieces have ``blocks_per_piece`` keys each, the last one fewer. ``Refused`` may stand in for the first one.
"""

from __future__ import annotations

import msgspec

from dynamo_sdk.errors import ProtocolError
from dynamo_sdk.transfer import wire
from dynamo_sdk.transfer.host import HostIdentity
from dynamo_sdk.transfer.ticket import RegionTicket

MAX_KEYS = 16384
"""Of one ask: half a frame's worth of the longest keys."""


PIECE_BYTES = 1 << 20
"""Of blocks (one block, if that is more): a RAM store copies so much without going to a thread."""


def blocks_per_piece(block_bytes: int) -> int:
    return max(1, PIECE_BYTES // block_bytes)


TAKEN = b"\x01"


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """``block_bytes``: of every block; a server that has others refuses. ``host``: of a reader that would
    map the server's memory."""

    block_bytes: int
    keys: list[bytes]
    host: HostIdentity | None = None


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """``found``: one byte per key, 1 or 0. ``checksums``: ``block_checksum`` of those found, joined. Of a
    ``region`` to be mapped, key ``i`` of the piece lies at ``offset + i * block_bytes``."""

    found: bytes
    checksums: bytes
    region: RegionTicket | None = None
    offset: int = 0


_encoder = msgspec.msgpack.Encoder()
_asks: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
_answers: msgspec.msgpack.Decoder[Piece | wire.Refused] = msgspec.msgpack.Decoder(Piece | wire.Refused)


def frame(message: Ask | Piece | wire.Refused) -> bytes:
    return wire.frame_of(_encoder.encode(message))


def decode_ask(body: bytes | bytearray | memoryview) -> Ask:
    """Raises ``ProtocolError``."""
    try:
        ask = _asks.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a peer sent no valid question: {error}") from error
    if not 0 < len(ask.keys) <= MAX_KEYS or ask.block_bytes < 1:
        raise ProtocolError(f"a peer asked for {len(ask.keys)} blocks of {ask.block_bytes} bytes")
    return ask


def decode_answer(body: bytes | bytearray | memoryview) -> Piece | wire.Refused:
    """Raises ``ProtocolError``."""
    try:
        return _answers.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a peer sent no valid answer: {error}") from error
